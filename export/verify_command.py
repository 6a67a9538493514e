"""Candidates against a reference on a whole test set.

    python -m export.verify artifacts/onnx/model.int8.onnx --against artifacts/checkpoint.pt --images artifacts/test

A checkpoint runs in PyTorch, an ONNX model in ONNX Runtime and OpenVINO, a TensorRT plan on a GPU.
Prints the largest probability difference, the part of the images with the same top-1, and top-1 and top-5 of each.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from export import report
from export.command import finish
from export.errors import AccuracyError, ModelError
from export.images import find_images
from export.networks import open_network, shared
from export.verify import Comparison, compare


@dataclass(frozen=True)
class Verified:
    """The reference's row and one of every way to run the candidates; file -> why it was not run."""

    rows: list[Comparison]
    not_run: dict[str, str]


def verify(
    candidates: Sequence[Path], against: Path, images: Path, limit: int | None = None, *, bf16: bool = False
) -> Verified:
    """Compare the files' answers to the images in <class>/ folders.

    Raises:
        ExportError: a file or an image cannot be used.
    """
    reference, opened = open_network(against), {path: open_network(path, bf16=bf16) for path in candidates}
    if not reference.candidates:
        raise ModelError(f"{against}: {reference.note}; compare with a checkpoint or an ONNX model")
    size, classes = shared([reference, *opened.values()])
    found = find_images(images, classes, limit)
    runs = [reference.candidates[0], *(run for each in opened.values() for run in each.candidates)]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{len(runs)} networks", total=len(found))
        rows = compare(runs, found, size, lambda done: progress.advance(task, done))
    return Verified(rows, {path.name: each.note for path, each in opened.items() if each.note})


def check(rows: list[Comparison], tolerance: float) -> None:
    """Raises:
    AccuracyError: a candidate's probabilities differ by more than `tolerance` from the reference's.
    """
    for row in rows[1:]:
        if not row.largest_difference <= tolerance:
            raise AccuracyError(
                f"{row.file} in {row.runtime}: probabilities differ by {row.largest_difference:.1e} from those of "
                f"{rows[0].file}, more than {tolerance:g}"
            )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidate", type=Path, nargs="+", help="checkpoint, ONNX model or TensorRT plan")
    parser.add_argument("--against", type=Path, required=True, metavar="REFERENCE", help="the same kinds of files")
    parser.add_argument("--images", type=Path, required=True, help="test images in <class>/ folders")
    parser.add_argument("--limit", type=int, help="compare on so many of them (default: all)")
    parser.add_argument("--bf16", action="store_true", help="run FP32 models in OpenVINO's BF16 too")
    parser.add_argument("--tolerance", type=float, help="fail where probabilities differ by more")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 compared; 1 a file cannot be used, or differs too much; 2 wrong command line; 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    return finish("verify", lambda: _run(options, ["export.verify", *given]))


def _run(options: argparse.Namespace, command: list[str]) -> None:
    verified = verify(options.candidate, options.against, options.images, options.limit, bf16=options.bf16)
    found = report.build(verified.rows, command, not_run=verified.not_run)
    report.show(found)
    if options.json:
        report.write(found, options.json)
    if options.tolerance is not None:
        check(verified.rows, options.tolerance)
