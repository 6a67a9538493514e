"""Rounds of measurements, and a stage's result: as a table for people, in the JSON file of all stages, as a picture."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_triton.common.files import replacing, write_json
from alexnet_triton.common.provenance import describe_command, describe_hardware, describe_versions
from alexnet_triton.loadtest.bench.config import BOUND, OURS, OURS_GRPC, Advance, BenchConfig

Rows = list[dict[str, Any]]
HEADINGS = {"images_per_s": "images/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms", "core_ms": "core-ms an image"}
HEADINGS |= {"predicted_per_s": "predicted", "mib": "MiB", "start_s": "start, s"}
HEADINGS |= {"gpu_w": "GPU, W", "images_per_joule": "images/J"}
WORDS = ("where", "target", "process")  # columns of text
FILE_WIDTH = 120  # of a table that is not written to a terminal
PACKAGES = ("nvidia-pytriton", "openvino", "tensorrt", "nvidia-dali-cuda130", "pillow", "numpy")
NOT_SHOWN = ("rows", "settings", "summary", "ratios", "images", "layers")
OWN_COLOURS = {OURS: "#0b6e4f", OURS_GRPC: "#2fa37c"}
OTHER_COLOURS = ("#d1495b", "#edae49", "#66629b", "#8d99ae")


def take_turns(
    config: BenchConfig, advance: Advance, targets: Mapping[str, Callable[[], Iterable[dict[str, Any]]]]
) -> Rows:
    """Measure every target once a round, so that a slow minute of the machine affects all of them.

    Args:
        targets: by name, what measures one once: a row of figures for each number of connections. Every other round
            begins with the last, so that none always follows the same one.
    """
    rows: Rows = []
    for number in range(config.repeats):
        for target in list(targets)[:: -1 if number % 2 else 1]:
            advance(f"{target}, round {number + 1} of {config.repeats}")
            rows += [{"target": target, "round": number, **row} for row in targets[target]()]
    return rows


def build_result(rows: Rows, ratios: dict[str, float]) -> dict[str, Any]:
    """What a stage that compares returns."""
    return {"rows": rows, "summary": summarise(rows), "ratios": ratios}


def medians(rows: Rows, figure: str) -> dict[str, float]:
    """Each target's median of a figure over the rounds."""
    return {row["target"]: row[figure] for row in summarise(rows)}


def summarise(rows: Rows) -> Rows:
    """One row for each target and number of connections: medians of the rounds, the lowest and the highest rate."""
    groups: dict[tuple[str, int], Rows] = {}
    for row in rows:
        groups.setdefault((row["target"], row["connections"]), []).append(row)
    return [_summarise_group(target, connections, group) for (target, connections), group in groups.items()]


def _summarise_group(target: str, connections: int, group: Rows) -> dict[str, Any]:
    rates = [row["images_per_s"] for row in group]
    figures = [name for name in group[0] if name not in ("target", "connections", "round")]
    medians = {name: median(row[name] for row in group) for name in figures}
    return {"target": target, "connections": connections, **medians, "lowest": min(rates), "highest": max(rates)}


def add_to_report(path: Path, stage: str, result: dict[str, Any]) -> None:
    """Write a stage's result into the file, in place of an earlier result of this stage.

    Raises:
        WriteError: the file cannot be written.
    """
    stages = json.loads(path.read_text())["stages"] if path.is_file() else {}
    stages[stage] = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": describe_hardware(),
        "load_average": os.getloadavg()[0],
        "versions": describe_versions(PACKAGES),
        "command": describe_command(),
        **result,
    }
    write_json(path, {"stages": stages})


def show_report(stage: str, result: dict[str, Any]) -> None:
    """Print a stage's result."""
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    if rows := result.get("summary", []):
        console.print(_build_table(stage, rows))
    for name in [name for name in result if name not in NOT_SHOWN]:
        console.print(_show(f"{stage}: {name.replace('_', ' ')}", result[name]))
    for name, value in result.get("ratios", {}).items():
        console.print(f"{stage}: {_format(value)} {name}")


def _show(title: str, value: Any) -> Table | str:
    return _build_table(title, value) if _is_table(value) else f"{title} {_format(value)}"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _build_table(title: str, rows: Rows) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(HEADINGS.get(name, name), justify="left" if name in WORDS else "right")
    for row in rows:
        table.add_row(*(_format(row.get(name, "")) for name in names))
    return table


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_format, value))
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)


def draw_served(path: Path, result: dict[str, Any]) -> None:
    """Draw images a second over connections, one line a server; the bars span the lowest and the highest round."""
    from matplotlib.figure import Figure  # slow to import

    lines: dict[str, Rows] = {}
    for row in result["summary"]:
        lines.setdefault(row["target"], []).append(row)
    bound = lines.pop(BOUND, [])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    others = iter(OTHER_COLOURS)
    for target, rows in lines.items():
        rates = [row["images_per_s"] for row in rows]
        colour = OWN_COLOURS.get(target) or next(others, "black")
        at, width = [str(row["connections"]) for row in rows], 2 if target in OWN_COLOURS else 1.4
        axes.errorbar(at, rates, yerr=_spread(rows), marker="o", capsize=3, color=colour, lw=width)
        axes.annotate(target, (at[-1], rates[-1]), (8, 0), textcoords="offset points", va="center", color=colour)
    for row in bound:
        axes.axhline(row["images_per_s"], ls="--", color="black", lw=1)
        axes.annotate(BOUND, (0, row["images_per_s"]), (0, 4), textcoords="offset points", fontsize=9)
    axes.set(ylim=(0, None), xlabel="connections", ylabel="images a second")
    axes.set_title(f"JPEG in, classes out ({result['images']})", fontsize=10)
    axes.margins(x=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _spread(rows: Rows) -> list[list[float]]:
    """How far the lowest round is below, and the highest above, the median rate [2, rows]."""
    below = [row["images_per_s"] - row["lowest"] for row in rows]
    return [below, [row["highest"] - row["images_per_s"] for row in rows]]
