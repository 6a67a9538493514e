"""The command `export`: from a checkpoint to a published version, in every precision, each verified."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from alexnet_triton.common.command import Parser, finish, positive_int
from alexnet_triton.common.files import sha256, write_json
from alexnet_triton.export import numerics, onnx_file, publish, report, to_onnx
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.images import LabelledImages, find_images
from alexnet_triton.export.numerics import TIMED_BATCHES, Candidate, onnx_runtime, openvino
from alexnet_triton.export.quantize import CALIBRATION_IMAGES, quantize
from alexnet_triton.export.settings import add_max_wait
from alexnet_triton.export.verify import plan_report
from alexnet_triton.training.checkpoint import Checkpoint

ARTIFACTS = Path("artifacts")
FP16_CHECK_IMAGES = 64  # ONNX Runtime has slow kernels for half precision; the whole test set follows
LARGEST_TIMED_BATCH = max(TIMED_BATCHES)


@dataclass(frozen=True)
class Sources:
    """What an export reads, and the folder that it writes to."""

    checkpoint: Path
    test: Path  # <class>/ folders, the whole test set
    calibration: Path  # <class>/ folders, training images
    onnx: Path
    limit: int | None = None  # test images to compare on; None for all
    rounds: int = 7  # of the speed measurement


def export_all(sources: Sources, progress: Progress, command: Sequence[str]) -> dict[str, Any]:
    """Write fp32, fp16 and int8 models and compare them on the whole test set; returns the report.

    Raises:
        UserError: a file cannot be used or written, or a network's answers differ too much.
    """

    def start_bar(name: str, total: int) -> Callable[[int], None]:
        task = progress.add_task(name, total=total)
        return lambda done: progress.advance(task, done)

    source, source_sha256 = to_onnx.open_checkpoint(sources.checkpoint)
    size = source.network.input_size
    test = find_images(sources.test, source.classes, sources.limit)
    calibration = find_images(sources.calibration, source.classes, CALIBRATION_IMAGES)
    _demand(test, LARGEST_TIMED_BATCH, sources.test)
    _demand(calibration, CALIBRATION_IMAGES, sources.calibration)
    fp32, fp16, int8 = (sources.onnx / name for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"))
    advance = start_bar("fp32 and fp16", 2)
    pixels = test.pixels(size, 0, to_onnx.CHECK_IMAGES)
    to_onnx.write_checked(source, source_sha256, fp32, pixels)
    advance(1)
    _write_fp16(source, source_sha256, fp16, fp32, pixels[:FP16_CHECK_IMAGES])
    advance(1)
    quantize(fp32, int8, calibration.pixels(size), start_bar("int8", CALIBRATION_IMAGES))
    candidates = [
        Candidate("fp32", "ONNX Runtime", fp32, onnx_runtime(fp32)),
        Candidate("fp16", "ONNX Runtime", fp16, onnx_runtime(fp16)),
        Candidate("fp32", "OpenVINO", fp32, openvino(fp32, "f32")),
        Candidate("bf16", "OpenVINO", fp32, openvino(fp32, "bf16")),
        Candidate("int8", "OpenVINO", int8, openvino(int8, "f32")),
    ]
    rows = numerics.compare(candidates, test, size, start_bar("comparing on the test set", len(test)))
    timed = pixels[:LARGEST_TIMED_BATCH]
    rates = numerics.measure_rates(candidates[2:], timed, sources.rounds, start_bar("measuring speed", sources.rounds))
    return report.build(
        numerics.with_rates(rows, rates),
        command,
        tensorrt=plan_report(sources.onnx / "model.plan"),
        test_set=test.in_folder,
        checkpoint_sha256=source_sha256,
        sha256={path.name: sha256(path) for path in (fp32, fp16, int8)},
    )


def _demand(images: LabelledImages, count: int, folder: Path) -> None:
    if len(images) < count:
        raise ModelError(f"{folder}: {len(images)} images, but {count} are needed; add some")


def _write_fp16(source: Checkpoint, source_sha256: str, path: Path, fp32: Path, pixels: np.ndarray) -> None:
    model = to_onnx.export(source, source_sha256, "fp16")
    onnx_file.write(model, path)
    layers = sum(node.op_type in onnx_file.WEIGHTED for node in model.graph.node)
    reference = onnx_runtime(fp32)
    tolerance = numerics.half_precision_tolerance(numerics.run_in_batches(reference, pixels), layers)
    numerics.check_batches(onnx_runtime(path), reference, pixels, tolerance)


def main(words: Sequence[str]) -> int:
    """Export a checkpoint and publish it; returns the exit code."""
    parser = Parser(prog="alexnet-triton export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, kind in (("test", "test"), ("calibration", "training")):
        default = ARTIFACTS / name
        text = f"{kind} images in <class>/ folders (default {default})"
        parser.add_argument(f"--{name}", type=Path, default=default, metavar="FOLDER", help=text)
    parser.add_argument("--onnx", type=Path, default=ARTIFACTS / "onnx", help="folder for the models")
    parser.add_argument("--repository", type=Path, default=publish.REPOSITORY)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="compare on N test images (default: all)")
    parser.add_argument("--rounds", type=positive_int, default=7, help="of the speed measurement (default 7)")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    add_max_wait(parser)
    parser.add_argument("--force", action="store_true", help=publish.FORCE_HELP)
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _run(options, [*parser.prog.split(), *words]))


def _run(options: argparse.Namespace, command: Sequence[str]) -> None:
    for name in ("test", "calibration"):
        folder = getattr(options, name)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder; `make export` makes it, or give --{name}")
    folders = (options.test, options.calibration, options.onnx)
    sources = Sources(options.checkpoint, *folders, options.limit, options.rounds)
    columns = (TextColumn("{task.description:>25}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:  # a bar a stage
        found = export_all(sources, progress, command)
    report.show(found)
    for path in (options.onnx / "report.json", *filter(None, [options.json])):
        write_json(path, found)
    settings = {"force": options.force, "max_wait_s": options.max_wait}
    version = publish.publish(options.onnx / "model.onnx", options.test, options.repository, **settings)
    print(f"version {version} in {options.repository}")
