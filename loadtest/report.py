"""The report: one HTML page with everything in it, and its charts once more as PNGs."""

import argparse
import base64
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from rich.console import Console

from alexnet_triton.common.command import Parser
from alexnet_triton.common.files import write_bytes, write_json, write_text
from alexnet_triton.common.provenance import describe_command, describe_machine, describe_versions
from alexnet_triton.loadtest.errors import ResultError, SettingError
from alexnet_triton.loadtest.recorder import QUANTILES
from alexnet_triton.loadtest.results import FORMAT, NAME, Json, prepare_folder, read_result
from alexnet_triton.loadtest.summary import error_console, load_words, out_console

if TYPE_CHECKING:
    from alexnet_triton.loadtest.charts import Chart

TEMPLATES = Path(__file__).parent
PAGE = "report.html"
PNG_DPI = 160
PACKAGES = ("alexnet-triton", "hdrhistogram", "grpcio", "aiohttp", "locust", "mlcommons-loadgen")
# Text stays text, so that it can be searched and scales with the page; no time and no random names, so that the same
# result gives the same page.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "loadtest", "font.size": 9, "font.family": "sans-serif"}
METADATA = {"Date": None}


def save_and_show(
    kind: str, arguments: argparse.Namespace, title: str, show: Callable[[Json, Console], None], **content: Any
) -> None:
    """Save a result and its report in `--output`, show it, and say where it is."""
    result = {
        "format": FORMAT,
        "kind": kind,
        "title": arguments.title or title,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": describe_command(["alexnet-triton", "loadtest", *arguments.words]),
        "machine": describe_machine(),
        "versions": describe_versions(PACKAGES),
        **content,
    }
    write_json(arguments.output / NAME, result)
    if arguments.json:
        write_json(arguments.json, result)
    if not arguments.no_report:
        write_report(arguments.output, [json.loads(json.dumps(result))])
    show(result, out_console())
    error_console().print(f"{arguments.output}")


def write_report(folder: Path, results: Sequence[Json]) -> Path:
    """The page and the PNGs of one result, or of two runs side by side.

    Raises:
        ResultError: two results that are not both runs, or a figure that is missing.
        SettingError: the folder cannot be written.
    """
    try:
        return _write(folder, results)
    except (KeyError, TypeError, ValueError, UndefinedError) as error:
        raise ResultError(f"the result is not whole ({error!r}): measure it again") from error


def _write(folder: Path, results: Sequence[Json]) -> Path:
    if len(results) > 1 and any(each["kind"] != "run" for each in results):
        raise ResultError("two results are compared when both are of `run`: name one, or two runs")
    import matplotlib as mpl  # half a second, which a measurement with --no-report does without

    with mpl.rc_context(SVG):
        drawn = _draw(results)
        pictures = [{"title": each.title, "words": each.words, "source": _svg(each)} for each in drawn]
        for each in drawn:
            write_bytes(folder / f"{each.name}.png", _render(each, "png"))
    write_text(folder / PAGE, _page(results, pictures))
    return folder / PAGE


def _draw(results: Sequence[Json]) -> "list[Chart]":
    from alexnet_triton.loadtest import charts

    first = results[0]
    if first["kind"] == "run":
        return [chart for draw in charts.RUN_CHARTS if (chart := draw(results))]
    if first["kind"] == "sweep":
        return [charts.throughput_against_latency(first, key, name) for name, key in QUANTILES.items()]
    return [charts.pairs(first)] if first["kind"] == "compare" else []


def _page(results: Sequence[Json], pictures: Sequence[Json]) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    template = environment.get_template("report.html.j2")
    runs = [each for each in results if each["kind"] == "run"]
    return template.render(
        results=results,
        pictures=pictures,
        load_words=load_words,
        spread=_spread(runs) if len(runs) == 2 else [],
    )


def _spread(runs: Sequence[Json]) -> list[dict[str, Any]]:
    """Of each figure the median over the windows and its quartiles, in both runs, and the ratio of the medians."""
    rows = []
    for name, key in {**QUANTILES, "answered/s": "per_s"}.items():
        sides = [_quartiles([each[key] for each in run["measured"]["windows"]]) for run in runs]
        change = sides[1][1] / sides[0][1] - 1 if sides[0][1] else 0.0
        rows.append({"name": name, "sides": sides, "change": change})
    return rows


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3 if values else (0.0,) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _svg(chart: "Chart") -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(_render(chart, "svg")).decode()


def _render(chart: "Chart", form: str) -> bytes:
    buffer = io.BytesIO()
    chart.figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata=METADATA if form == "svg" else None)
    return buffer.getvalue()


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser: Parser = commands.add_parser("report", help="the page of a saved result, or of two runs side by side")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="folder of --output, or result.json")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the page (default: the first result's)")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""

    if len(arguments.results) > 2:
        raise SettingError("one result or two: an old one and a new one")
    results = [read_result(path) for path in arguments.results]
    first = arguments.results[0]
    folder = prepare_folder(arguments.output or (first if first.is_dir() else first.parent))
    print(write_report(folder, results))
    return 0
