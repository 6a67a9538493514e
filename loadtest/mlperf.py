"""alexnet-triton loadtest mlperf: a run of MLCommons' LoadGen, whose verdict is the exit code."""

import argparse
import asyncio
import json
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_triton.client.config import Config
from alexnet_triton.common.command import Parser
from alexnet_triton.common.provenance import describe_command
from alexnet_triton.loadtest.arguments import add_output, add_target, client_config, output_folder, seconds
from alexnet_triton.loadtest.cases import Target, find_images, reach
from alexnet_triton.loadtest.errors import ResultError, SettingError
from alexnet_triton.loadtest.results import Json, prepare_folder, wrap
from alexnet_triton.loadtest.run import INTERRUPTED, MISSED, OK, describe_target, save
from alexnet_triton.loadtest.summary import error_console, out_console, waiting
from alexnet_triton.loadtest.variants import fresh_server

if TYPE_CHECKING:
    from alexnet_triton.loadtest.loadgen import Rules


SUMMARY, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
LINE = re.compile(r"^\s*([^:]+?)\s*:\s*(.+?)\s*$", re.MULTILINE)
RATES = {"Offline": "Samples per second", "Server": "Completed samples per second"}


@dataclass(frozen=True)
class Summary:
    """LoadGen's figures and its judgement.

    Attributes:
        rate_per_s: samples a second; None of SingleStream, whose figure is a latency.
        latency_ms: of Server the 99th, of SingleStream the 90th percentile; None of Offline.
    """

    valid: bool
    rate_per_s: float | None
    latency_ms: float | None
    lines: dict[str, str]


def read_summary(folder: Path, scenario: str) -> Summary:
    """LoadGen's summary.

    Raises:
        ResultError: there is none.
    """
    try:
        lines = dict(LINE.findall((folder / SUMMARY).read_text()))
    except OSError as error:
        raise ResultError(f"no {folder / SUMMARY}: {error.strerror}; LoadGen did not finish") from None
    rate = lines.get(RATES.get(scenario, ""))
    quantile = {"Server": "99.00", "SingleStream": "90.00"}.get(scenario)
    latency = lines.get(f"{quantile} percentile latency (ns)")
    return Summary(
        lines.get("Result is") == "VALID",
        float(rate) if rate else None,
        float(latency) / 1e6 if latency else None,
        lines,
    )


def accuracy(folder: Path, paths: Sequence[Path], labels: Mapping[int, str]) -> float:
    """Part of the images whose answer is their folder's name, from LoadGen's log of answers.

    Raises:
        ResultError: the log cannot be read.
    """
    try:
        entries = json.loads((folder / ACCURACY).read_text())
        answers = {
            each["qsl_idx"]: struct.unpack("<i", bytes.fromhex(each["data"]))[0] for each in entries if each["data"]
        }
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ResultError(f"{folder / ACCURACY}: {error}") from None
    right = sum(labels.get(index) == paths[number].parent.name for number, index in answers.items())
    return right / len(paths)


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser: Parser = commands.add_parser("mlperf", help="MLCommons' LoadGen: SingleStream, Offline or Server")
    group = parser.add_argument_group("LoadGen")
    group.add_argument("--scenario", choices=("SingleStream", "Offline", "Server"), required=True)
    group.add_argument("--accuracy", action="store_true", help="LoadGen's accuracy run: every image once")
    group.add_argument(
        "--min-duration", type=seconds, default=60.0, metavar="TIME", help="of a valid run: 60s; a submission needs 10m"
    )
    group.add_argument(
        "--target-qps", type=float, metavar="R", help="Server: arrivals a second; Offline: what to expect"
    )
    group.add_argument("--target-latency", type=seconds, default=0.15, metavar="TIME", help="Server: of 99 %%, 150ms")
    group.add_argument("--offline-batch", type=int, default=16, metavar="N", help="images a request (default: 16)")
    group.add_argument("--offline-requests", type=int, default=6, metavar="N", help="in flight (default: 6)")
    add_target(parser)
    add_output(parser)
    parser.set_defaults(call=run, limit=10_000, images=Path("artifacts/test"))


def run(arguments: argparse.Namespace) -> int:
    """Run LoadGen, save what it says, and end with 0 where it calls the run valid."""
    from alexnet_triton.loadtest.loadgen import Rules

    rules = Rules(**_rules(arguments))
    paths = sorted(find_images(arguments.images, arguments.limit, arguments.seed))
    folder = prepare_folder(output_folder(arguments))
    try:
        with fresh_server(arguments) as url:
            return _run(arguments, url, rules, paths, folder)
    except KeyboardInterrupt:
        print("loadtest: interrupted, without LoadGen's judgement", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # LoadGen's threads cannot be told to stop, and would abort an orderly end


def _run(arguments: argparse.Namespace, url: str | None, rules: "Rules", paths: list[Path], folder: Path) -> int:
    from alexnet_triton.loadtest.loadgen import Library, SystemUnderTest, run_loadgen

    target = asyncio.run(_reach(client_config(arguments, url), paths[0]))
    if not 1 <= rules.batch <= target.signature.max_batch:
        raise SettingError(f"--offline-batch {rules.batch}: the model takes 1 to {target.signature.max_batch} images")
    library = Library(target, paths)
    sut = SystemUnderTest(target, library, rules)
    sut.start()
    try:
        with waiting(f"LoadGen, {rules.scenario}", _expected_s(rules, len(paths))):
            run_loadgen(sut, library, rules, folder)
    finally:
        sut.close()
    top1 = accuracy(folder, paths, sut.labels) if rules.accuracy else None
    summary = asdict(read_summary(folder, rules.scenario)) if not rules.accuracy else None
    result = wrap(
        "mlperf",
        describe_command(["alexnet-triton", "loadtest", *arguments.words]),
        arguments.title or f"MLPerf LoadGen, {rules.scenario}{', accuracy' if rules.accuracy else ''}",
        target=describe_target(target, arguments),
        rules=asdict(rules),
        images=len(paths),
        failures=dict(sut.failures),
        summary=summary,
        top1=top1,
    )
    save(result, folder, arguments)
    _show(result, folder)
    return OK if not sut.failures and (summary is None or summary["valid"]) else MISSED


def _rules(arguments: argparse.Namespace) -> Json:
    needs_rate = arguments.scenario != "SingleStream" and not arguments.accuracy
    if needs_rate and not (arguments.target_qps and 0 < arguments.target_qps <= 100_000):
        raise SettingError(
            f"--scenario {arguments.scenario} wants --target-qps: what the server does, as `loadtest sweep` finds it"
        )
    if arguments.offline_requests < 1 or arguments.min_duration < 1:
        raise SettingError("--offline-requests is 1 or more, --min-duration a second or more")
    return {
        "scenario": arguments.scenario,
        "accuracy": arguments.accuracy,
        "min_duration_s": arguments.min_duration,
        "target_qps": arguments.target_qps or 100.0,
        "target_latency_s": arguments.target_latency,
        "batch": arguments.offline_batch,
        "concurrency": arguments.offline_requests,
    }


async def _reach(config: Config, first: Path) -> Target:
    target, _ = await reach(config, [first])
    return target


def _expected_s(rules: Any, images: int) -> float:
    return images / 200 if rules.accuracy else 1.1 * rules.min_duration_s


def _show(result: Json, folder: Path) -> None:
    console = out_console()
    console.print(f"[bold]{result['title']}[/]")
    if result["top1"] is not None:
        console.print(f"top-1 {result['top1']:.4f} on {result['images']:,} images")
    if summary := result["summary"]:
        word = "[green]VALID[/]" if summary["valid"] else "[red]INVALID[/]"
        rate = f"{summary['rate_per_s']:,.1f} samples/s  " if summary["rate_per_s"] else ""
        latency = f"latency {summary['latency_ms']:,.2f} ms" if summary["latency_ms"] else ""
        console.print(f"{word}  {rate}{latency}")
        for name, text in summary["lines"].items():
            if "satisfied" in name and text != "Yes":
                console.print(f"    {name}: {text}")
    for name, count in result["failures"].items():
        console.print(f"[red]{count:,} x {name}[/]")
    error_console().print(f"{folder}")
