"""python -m export all CHECKPOINT: every precision, verified, reported and published."""

import argparse
import sys
from pathlib import Path

from export.command import finish, stay_quiet_while_loading
from export.errors import ModelError

ARTIFACTS = Path("artifacts")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    stages = parser.add_subparsers(required=True, metavar="all")
    everything = stages.add_parser("all", help="checkpoint to ONNX fp32, fp16 and int8, verified and published")
    everything.add_argument("checkpoint", type=Path)
    for name, kind in (("test", "test"), ("calibration", "training")):
        default = ARTIFACTS / name
        what = f"{kind} images in <class>/ folders (default {default})"
        everything.add_argument(f"--{name}", type=Path, default=default, metavar="FOLDER", help=what)
    everything.add_argument("--onnx", type=Path, default=ARTIFACTS / "onnx", help="folder for the models")
    everything.add_argument("--repository", type=Path, default=ARTIFACTS / "model_repository")
    everything.add_argument("--images", type=int, help="test images to compare on (default: all)")
    everything.add_argument("--rounds", type=int, default=7, help="of the speed measurement (default 7)")
    everything.add_argument("--json", type=Path, help="write the report here too")
    everything.add_argument("--force", action="store_true", help="publish precisions that lose too much, on the record")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    return finish("export", lambda: _run(options, given))


def _run(options: argparse.Namespace, given: list[str]) -> None:
    for name in ("test", "calibration"):
        if not getattr(options, name).is_dir():
            raise ModelError(f"{getattr(options, name)}: no such folder; `make export` makes it, or give --{name}")
    # PyTorch and the runtimes take seconds to load: what is wrong with the command is said before.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from export import publish, report
    from export.pipeline import Sources, export_all

    sources = Sources(
        options.checkpoint, options.test, options.calibration, options.onnx, options.images, options.rounds
    )
    columns = (TextColumn("{task.description:>25}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:  # a bar a stage
        found = export_all(sources, progress, ["export", *given])
    report.show(found)
    for path in (options.onnx / "report.json", *filter(None, [options.json])):
        report.write(found, path)
    version = publish.publish(options.onnx / "model.onnx", options.test, options.repository, force=options.force)
    print(f"version {version} in {options.repository}")


if __name__ == "__main__":
    stay_quiet_while_loading()
    sys.exit(main())
