"""python -m export all CHECKPOINT: every precision, verified, reported and published."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from export import publish, report
from export.errors import ExportError
from export.pipeline import Sources, export_all


def progress_bars() -> Progress:
    """A bar a stage, with the time that it took, on stderr."""
    columns = (TextColumn("{task.description:>25}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    stages = parser.add_subparsers(required=True, metavar="all")
    everything = stages.add_parser("all", help="checkpoint to ONNX fp32, fp16 and int8, verified and published")
    everything.add_argument("checkpoint", type=Path)
    everything.add_argument("--test", type=Path, required=True, help="test images in <class>/ folders")
    everything.add_argument("--calibration", type=Path, required=True, help="training images in <class>/ folders")
    everything.add_argument("--onnx", type=Path, default=Path("artifacts/onnx"), help="folder for the models")
    everything.add_argument("--repository", type=Path, default=publish.REPOSITORY)
    everything.add_argument("--images", type=int, help="test images to compare on (default: all)")
    everything.add_argument("--rounds", type=int, default=7, help="of the speed measurement (default 7)")
    everything.add_argument("--json", type=Path, help="write the report here too")
    everything.add_argument("--force", action="store_true", help="publish precisions that lose too much, on the record")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    sources = Sources(
        options.checkpoint, options.test, options.calibration, options.onnx, options.images, options.rounds
    )
    try:
        with progress_bars() as progress:
            found = export_all(sources, progress, ["export", *given])
        report.show(found)
        for path in (options.onnx / "report.json", *filter(None, [options.json])):
            report.write(found, path)
        version = publish.publish(options.onnx / "model.onnx", options.test, options.repository, force=options.force)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(f"version {version} in {options.repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
