"""make bench, python -m bench STAGE...: measured on this machine, as a table, a picture and JSON."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alexnet_triton.loadtest.bench import client, compare, faults, overload, photographs, report, tune
from alexnet_triton.loadtest.bench.config import BenchConfig, BenchError

Stage = Callable[[BenchConfig, Callable[[str], None]], dict[str, Any]]
STAGES: dict[str, Stage] = {
    "served": compare.measure_served,
    "tensors": compare.measure_tensors,
    "batching": compare.measure_batching,
    "single": compare.measure_single,
    "client": client.measure,
    "overload": overload.measure_overload,
    "faults": faults.measure,
    "soak": overload.measure_soak,
    "tune": tune.measure,
}
BY_DEFAULT = ("served", "tensors", "batching", "single", "client", "overload", "faults")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 something that is needed is missing or failed, 2 usage, 130 interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    config = _config(options)
    try:
        _run(options.stages or BY_DEFAULT, config, options.json, ["bench", *given])
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def tune_stage(words: Sequence[str]) -> int:
    return main(["tune", *words])


def faults_stage(words: Sequence[str]) -> int:
    return main(["faults", *words])


def _run(stages: Sequence[str], config: BenchConfig, json_file: Path, command: list[str]) -> None:
    if not (config.repository / "classify").is_dir():
        raise BenchError(f"no repository in {config.repository}: run `make export`")
    config.folder.mkdir(parents=True, exist_ok=True)
    bodies = photographs.prepare(config.bodies, config.images, config.pictures)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    for name in stages:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(name, total=None)

            def advance(what: str, task: Any = task, name: str = name, bar: Progress = progress) -> None:
                bar.update(task, description=f"{name}: {what}")

            result = STAGES[name](config, advance)
        result = {"command": " ".join(command), "images": bodies, **result}
        report.add_to_report(json_file, name, result)
        report.show_report(name, result)
        if name in report.PICTURES:
            report.PICTURES[name](json_file.with_name(f"{name}.png"), result)


def _config(options: argparse.Namespace) -> BenchConfig:
    names = BenchConfig.__dataclass_fields__
    return BenchConfig(**{name: value for name, value in vars(options).items() if name in names and value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)} (default: {', '.join(BY_DEFAULT)})"
    )
    parser.add_argument("--repository", type=Path, default=Path("artifacts/model_repository"))
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="photographs to send (default: the demo's, enlarged)"
    )
    parser.add_argument("--pictures", type=Path, default=Path("artifacts/pictures"), help="the demo's pictures")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench"), help="working files and logs")
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench/bench.json"), metavar="FILE")
    parser.add_argument(
        "--target", dest="targets", action="append", choices=compare.TARGETS, help="only this (repeatable)"
    )
    parser.add_argument("--connections", type=int, nargs="+", metavar="N", help="default: 1 16 64 256")
    parser.add_argument("--warm-up-s", type=float, help="before the first of each server (default 2)")
    parser.add_argument("--seconds", type=float, help="of each measurement (default 6)")
    parser.add_argument("--repeats", type=int, help="rounds (default 3)")
    parser.add_argument("--peers-python", type=Path, help="default: .venv-bench/bin/python")
    parser.add_argument("--overload-s", type=float, help="of stage overload (default 60)")
    parser.add_argument("--soak-s", type=float, help="of stage soak (default 600)")
    parser.add_argument("--client-images", type=int, metavar="N", help="of stage client (default 10000)")
    parser.add_argument("--kills", type=int, help="of stage faults (default 10)")
    return parser
