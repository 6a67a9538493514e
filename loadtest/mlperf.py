"""alexnet-triton loadtest mlperf: a run of MLCommons' LoadGen, whose verdict is the exit code."""

import argparse
import asyncio
import json
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_triton.common.command import Parser
from alexnet_triton.loadtest.arguments import add_shared_options, client_config, percent, seconds
from alexnet_triton.loadtest.cases import find_images, prepare
from alexnet_triton.loadtest.errors import ResultError, SettingError
from alexnet_triton.loadtest.loadgen import Library, Rules, SystemUnderTest, run_loadgen
from alexnet_triton.loadtest.report import save_and_show
from alexnet_triton.loadtest.results import CODES, INTERRUPTED, Json, describe_target, prepare_folder
from alexnet_triton.loadtest.summary import waiting
from alexnet_triton.loadtest.variants import fresh_server

SUMMARY, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
LINE = re.compile(r"^\s*([^:]+?)\s*:\s*(.+?)\s*$", re.MULTILINE)
RATES = {"Offline": "Samples per second", "Server": "Completed samples per second"}


def read_summary(folder: Path, scenario: str) -> Json:
    """LoadGen's judgement `valid`, its figures, and all `lines` of its summary.

    `rate_per_s`, of samples, is None of SingleStream, whose figure is a latency. `latency_ms` is of Server the 99th, of
    SingleStream the 90th percentile; None of Offline.

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
    return {
        "valid": lines.get("Result is") == "VALID",
        "rate_per_s": float(rate) if rate else None,
        "latency_ms": float(latency) / 1e6 if latency else None,
        "lines": lines,
    }


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
    add = parser.add_argument_group("LoadGen").add_argument
    add("--scenario", choices=("SingleStream", "Offline", "Server"), required=True)
    add("--accuracy", action="store_true", help="LoadGen's accuracy run: every image once")
    add("--target-accuracy", type=percent, metavar="85%%", help="of --accuracy: top-1 at least, else exit with 1")
    add("--min-duration", type=seconds, default="60s", metavar="TIME", help="60s is valid; a submission needs 10m")
    add("--target-qps", type=float, metavar="R", help="Server: arrivals a second; Offline: what to expect")
    add("--target-latency", type=seconds, default="150ms", metavar="TIME", help="Server: of 99 %%, 150ms")
    add("--offline-batch", type=int, default=16, metavar="N", help="images a request (default: 16)")
    add("--offline-requests", type=int, default=6, metavar="N", help="in flight (default: 6)")
    add_shared_options(parser, duration=None)
    parser.set_defaults(call=run, limit=10_000, images=Path("artifacts/test"))


def run(arguments: argparse.Namespace) -> int:
    """Run LoadGen, save what it says, and end with 0 where it calls the run valid, or top-1 is the target or more."""
    rules = _rules(arguments)
    paths = sorted(find_images(arguments.images, arguments.limit, arguments.seed))
    prepare_folder(arguments.output)
    try:
        with fresh_server(arguments) as url:
            return _run(arguments, url, rules, paths)
    except KeyboardInterrupt:
        print("loadtest: interrupted, without LoadGen's judgement", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # LoadGen's threads cannot be told to stop, and would abort an orderly end


def _run(arguments: argparse.Namespace, url: str | None, rules: Rules, paths: list[Path]) -> int:
    config, folder = client_config(arguments, url), arguments.output
    target, _ = asyncio.run(prepare(config, arguments.images, 1, arguments.seed))
    if not 1 <= rules.batch <= target.signature.max_batch:
        raise SettingError(f"--offline-batch {rules.batch}: the model takes 1 to {target.signature.max_batch} images")
    library = Library(target, paths)
    sut = SystemUnderTest(target, library, rules)
    sut.start()
    try:
        expected_s = len(paths) / 200 if rules.accuracy else 1.1 * rules.min_duration_s
        with waiting(f"LoadGen, {rules.scenario}", expected_s):
            run_loadgen(sut, library, rules, folder)
    finally:
        sut.close()
    summary = None if rules.accuracy else read_summary(folder, rules.scenario)
    top1 = accuracy(folder, paths, sut.labels) if rules.accuracy else None
    save_and_show(
        "mlperf",
        arguments,
        f"MLPerf LoadGen, {rules.scenario}{', accuracy' if rules.accuracy else ''}",
        _show,
        target=describe_target(target, arguments),
        rules=asdict(rules),
        images=len(paths),
        failures=dict(sut.failures),
        summary=summary,
        top1=top1,
        target_accuracy=arguments.target_accuracy,
    )
    if sut.failures or (summary and not summary["valid"]):
        return CODES[False]
    if top1 is None:
        return CODES[True]
    return CODES[None if not arguments.target_accuracy else top1 >= arguments.target_accuracy]


def _rules(arguments: argparse.Namespace) -> Rules:
    needs_rate = arguments.scenario != "SingleStream" and not arguments.accuracy
    if needs_rate and not (arguments.target_qps and 0 < arguments.target_qps <= 100_000):
        raise SettingError(
            f"--scenario {arguments.scenario} wants --target-qps: what the server does, as `loadtest sweep` finds it"
        )
    if arguments.offline_requests < 1 or arguments.min_duration < 1:
        raise SettingError("--offline-requests is 1 or more, --min-duration a second or more")
    return Rules(
        scenario=arguments.scenario,
        accuracy=arguments.accuracy,
        min_duration_s=arguments.min_duration,
        target_qps=arguments.target_qps or 100.0,
        target_latency_s=arguments.target_latency,
        batch=arguments.offline_batch,
        concurrency=arguments.offline_requests,
    )


def _show(result: Json, console: Console) -> None:
    console.print(f"[bold]{result['title']}[/]")
    if result["top1"] is not None:
        word = f"{least:.4f} asked for" if (least := result["target_accuracy"]) else "not decided: no --target-accuracy"
        console.print(f"top-1 {result['top1']:.4f} on {result['images']:,} images, {word}")
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
