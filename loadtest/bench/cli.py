"""`alexnet-triton bench` and `tune`: stages measured on this machine, as a table and JSON."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alexnet_triton.common.command import Parser, finish, positive_float, positive_int
from alexnet_triton.loadtest.bench import compare, gateway, profile, report, scale, tune
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig, BenchError, prepare_images
from alexnet_triton.loadtest.bench.servers import PEERS
from alexnet_triton.serving.repository import VARIANTS

STAGES: dict[str, Callable[[BenchConfig, Advance], dict[str, Any]]] = {
    "served": compare.measure_served,
    "tensors": compare.measure_tensors,
    "batching": compare.measure_batching,
    "single": compare.measure_single,
    "client": compare.measure_client,
    "overload": compare.measure_overload,
    "profile": profile.measure,
    "scale": scale.measure,
    "tune": tune.measure,
    "gateway-cost": gateway.measure_cost,
    "gateway-slow": gateway.measure_slow,
}
PICTURES = {"served": report.draw_served, "profile": profile.draw, "scale": scale.draw}
BY_DEFAULT = ("served", "tensors", "batching", "single", "client", "overload")


def main(words: Sequence[str]) -> int:
    """Measure the stages that are named. Exit code 0: measured, 1: something is missing or failed, 2: usage."""
    parser = _build_parser("bench", "the server beside others, at the machine's bound, and overloaded", BY_DEFAULT)
    add, stages = parser.add_argument, f"{', '.join(STAGES)} (default: {' '.join(BY_DEFAULT)})"
    add("stages", nargs="*", metavar="STAGE", type=_stage, help=stages)
    add("--target", dest="targets", action="append", choices=compare.TARGETS, help="of served: only this (repeatable)")
    add("--connections", type=positive_int, nargs="+", metavar="N", help="of served (1 16 64 256)")
    add("--peers-python", type=Path, metavar="FILE", help="of served (.venv-bench/bin/python)")
    add("--client-images", type=positive_int, metavar="N", help="of client (10000)")
    add("--overload-s", type=positive_float, metavar="SECONDS", help="of overload (60)")
    add("--peer", dest="peers", action="append", choices=PEERS, help="of tune: find its settings (repeatable)")
    add("--apart", action="store_true", default=None, help="of overload: the load generator has the last core alone")
    add("--profile-connections", type=positive_int, metavar="N", help="of profile (64)")
    return _run(parser, words)


def tune_stage(words: Sequence[str]) -> int:
    """Find the fastest settings and write them to the repository; exit codes as `main`."""
    description = "find the settings that are fastest on this machine, and write them"
    return _run(_build_parser("tune", description, ["tune"]), words)


def _build_parser(name: str, description: str, stages: Sequence[str]) -> Parser:
    parser = Parser(prog=f"alexnet-triton {name}", description=description)
    parser.set_defaults(stages=stages)
    add, folder = parser.add_argument, Path("artifacts/bench")
    add("--repository", type=Path, default=Path("artifacts/model_repository"), metavar="FOLDER")
    add("--variant", choices=VARIANTS, help="of its configurations (cpu)")
    add("--images", type=Path, metavar="FOLDER", help="photographs to send (the demo's, enlarged)")
    add("--pictures", type=Path, metavar="FOLDER", help="the demo's pictures (artifacts/pictures)")
    add("--folder", type=Path, default=folder, help=f"working files and logs ({folder})")
    add("--json", type=Path, default=folder / "bench.json", metavar="FILE", help="the figures (%(default)s)")
    add("--warm-up-s", type=positive_float, metavar="SECONDS", help="before measuring a server (2)")
    add("--seconds", type=positive_float, help="of each measurement (6)")
    add("--repeats", type=positive_int, metavar="N", help="rounds (3)")
    return parser


def _stage(text: str) -> str:
    if text not in STAGES:
        raise argparse.ArgumentTypeError(f"no stage {text!r}: give {', '.join(STAGES)}")
    return text


def _run(parser: Parser, words: Sequence[str]) -> int:
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _measure_stages(options))


def _measure_stages(options: argparse.Namespace) -> None:
    config = _build_config(options)
    if not (config.repository / "classify").is_dir():
        raise BenchError(f"no repository in {config.repository}: run `make export`")
    config.folder.mkdir(parents=True, exist_ok=True)
    images = prepare_images(config)
    for name in options.stages:
        result = {"images": images, **_measure(name, config)}
        report.add_to_report(options.json, name, result)
        report.show_report(name, result)
        if name in PICTURES:
            PICTURES[name](options.json.with_name(f"{name}.png"), result)


def _build_config(options: argparse.Namespace) -> BenchConfig:
    """The options that were given; the rest has the defaults of BenchConfig."""
    names = BenchConfig.__dataclass_fields__
    return BenchConfig(**{name: value for name, value in vars(options).items() if name in names and value is not None})


def _measure(name: str, config: BenchConfig) -> dict[str, Any]:
    """Measure a stage while a line on stderr shows its progress."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        return STAGES[name](config, lambda step: progress.update(task, description=f"{name}: {step}"))
