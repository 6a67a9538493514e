"""The command `export`: from a checkpoint, or any classifier in ONNX, to a published version in every precision.

    alexnet-triton export artifacts/checkpoint.pt --test artifacts/test
    alexnet-triton export resnet50.onnx --labels labels.txt --preset torchvision --test photos/test --name resnet50

Every precision is compared with FP32: by top-1 and top-5 on images in <class>/ folders, or, where the folder holds
images without classes, by the class that both find most probable and by all probabilities.
"""

import argparse
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from alexnet_triton.common.command import Parser, finish, positive_int
from alexnet_triton.common.files import sha256, write_json
from alexnet_triton.export import adapt, numerics, onnx_file, publish, verify
from alexnet_triton.export.errors import AccuracyError, ExportError, ModelError
from alexnet_triton.export.numerics import TIMED_BATCHES, Candidate, LabelledImages, find_images, onnx_runtime, openvino
from alexnet_triton.export.prepare import FILES
from alexnet_triton.export.quantize import CALIBRATION_IMAGES, quantize, to_half
from alexnet_triton.export.settings import add_max_wait
from alexnet_triton.export.verify import plan_report

ARTIFACTS = Path("artifacts")
FP16_CHECK_IMAGES = 64  # ONNX Runtime has slow kernels for half precision; the whole test set follows
LARGEST_TIMED_BATCH = max(TIMED_BATCHES)
LEAST_CALIBRATION = 16  # images

StartBar = Callable[[str, int], Callable[[int], None]]  # name and total -> what is called with the images done


@dataclass(frozen=True)
class Sources:
    """The images that an export compares on, and the folder that it writes to."""

    test: Path  # <class>/ folders, the whole test set; or images without labels
    onnx: Path
    calibration: Path | None = None  # images that INT8 is calibrated on; None for a part of the test images
    limit: int | None = None  # test images to compare on; None for all
    rounds: int = 7  # of the speed measurement; 0 for none
    precisions: tuple[str, ...] = ("fp16", "int8")  # that are made; BF16 is OpenVINO's, of the FP32 model

    def find(self, classes: Sequence[str]) -> tuple[LabelledImages, LabelledImages]:
        """The images to calibrate on, and the others, to compare on.

        Raises:
            ModelError: a folder cannot be used, or has too few images.
        """
        if self.calibration:
            calibration = find_images(self.calibration, classes, CALIBRATION_IMAGES)
            test, wanted = find_images(self.test, classes, self.limit), CALIBRATION_IMAGES
        else:
            found, wanted = find_images(self.test, classes), LEAST_CALIBRATION
            calibration, test = found.split(min(CALIBRATION_IMAGES, len(found) // 2))
            test = test.first(self.limit)
        _demand(calibration, wanted, self.calibration or self.test)
        _demand(test, LARGEST_TIMED_BATCH, self.test)
        return calibration, test


def _demand(images: LabelledImages, count: int, folder: Path) -> None:
    if len(images) < count:
        raise ModelError(f"{folder}: {len(images)} images, but {count} are needed; add some")


def export_all(fp32: Path, sources: Sources, progress: Progress, command: Sequence[str]) -> dict[str, Any]:
    """Write fp16 and int8 models beside an FP32 model in this project's signature, and compare all; returns the report.

    Raises:
        UserError: a file cannot be used or written.
    """

    def start_bar(name: str, total: int) -> Callable[[int], None]:
        task = progress.add_task(name, total=total)
        return lambda done: progress.advance(task, done)

    model = onnx_file.read(fp32)
    batch, size = onnx_file.check_signature(model, fp32)
    calibration, test = sources.find(onnx_file.classes(model))
    left_out = _write_others(fp32, sources.precisions, calibration, test, size, start_bar)
    candidates = _candidates(fp32, batch or LARGEST_TIMED_BATCH, {*sources.precisions} - {*left_out})
    rows = numerics.compare(candidates, test, size, start_bar("comparing on the test set", len(test)))
    timed = test.pixels(size, 0, LARGEST_TIMED_BATCH)
    on_openvino = [each for each in candidates if each.runtime == "OpenVINO"]
    advance = start_bar("measuring speed", sources.rounds) if sources.rounds else lambda rounds: None
    rates = numerics.measure_rates(on_openvino, timed, sources.rounds, advance)
    return verify.build_report(
        numerics.with_rates(rows, rates),
        command,
        tensorrt=plan_report(sources.onnx / "model.plan"),
        compared="top-1 and top-5" if test.labels is not None else "agreement, no labels",
        test_set=test.in_folder,
        left_out=left_out,
        checkpoint_sha256=onnx_file.metadata(model).get("checkpoint_sha256", ""),
        sha256={each.path.name: sha256(each.path) for each in candidates},
    )


def _write_others(
    fp32: Path,
    precisions: Sequence[str],
    calibration: LabelledImages,
    test: LabelledImages,
    size: int,
    start_bar: StartBar,
) -> dict[str, str]:
    """Write the models of other precisions; returns which could not be made, and why."""
    makers = {
        "fp16": lambda advance: _write_fp16(fp32, test.pixels(size, 0, FP16_CHECK_IMAGES), advance),
        "int8": lambda advance: quantize(fp32, fp32.with_name(FILES["int8"]), calibration.pixels(size), advance),
    }
    totals = {"fp16": 1, "int8": len(calibration)}
    left_out = {}
    for precision in precisions:
        try:
            makers[precision](start_bar(precision, totals[precision]))
        except ExportError as error:
            left_out[precision] = str(error)
    for precision in {*makers} - {*precisions}:
        fp32.with_name(FILES[precision]).unlink(missing_ok=True)  # of an export before
    return left_out


def _write_fp16(fp32: Path, pixels: np.ndarray, advance: Callable[[int], None]) -> None:
    """Raises AccuracyError, without a file left, where the answers differ by more than rounding explains."""
    source, path = onnx_file.read(fp32), fp32.with_name("model.fp16.onnx")
    onnx_file.write(to_half(source), path)
    layers = sum(node.op_type in onnx_file.WEIGHTED for node in source.graph.node)
    batch, _ = onnx_file.check_signature(source, fp32)
    reference = onnx_runtime(fp32)
    tolerance = numerics.half_precision_tolerance(numerics.run_in_batches(reference, pixels, batch or 32), layers)
    try:
        batches = (batch,) if batch else numerics.BATCHES
        numerics.check_batches(onnx_runtime(path), reference, pixels, tolerance, batches)
    except (AccuracyError, ModelError):
        path.unlink()
        raise
    advance(1)


def _candidates(fp32: Path, batch: int, others: Collection[str]) -> list[Candidate]:
    """FP32 in two runtimes, BF16, and the other precisions that were made; the first is the reference."""
    fp16, int8 = fp32.with_name(FILES["fp16"]), fp32.with_name(FILES["int8"])
    candidates = [Candidate("fp32", "ONNX Runtime", fp32, onnx_runtime(fp32), batch)]
    if "fp16" in others:
        candidates.append(Candidate("fp16", "ONNX Runtime", fp16, onnx_runtime(fp16), batch))
    candidates += [Candidate(each, "OpenVINO", fp32, openvino(fp32, each), batch) for each in ("fp32", "bf16")]
    if "int8" in others:
        candidates.append(Candidate("int8", "OpenVINO", int8, openvino(int8, "int8"), batch))
    return candidates


def _demand_better_than_chance(row: dict[str, Any], fp32: Path) -> None:
    """Refuse a top-1 that guessing reaches: within three deviations of the mean of that many guesses."""
    images, classes = row["images"], len(onnx_file.classes(onnx_file.read(fp32)))
    mean = images / classes
    most = mean + 3 * math.sqrt(mean * (1 - 1 / classes))
    if row["top1"] is not None and classes > 1 and row["top1"] * images <= most:
        raise AccuracyError(
            f"{fp32}: top-1 {row['top1']:.4f} on {images:,} images of {classes:,} classes is no better than guessing; "
            "check --preset or --mean and --std, and the order of the labels; or publish all the same with --force"
        )


def main(words: Sequence[str]) -> int:
    """Export a network and publish it; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="alexnet-triton export", description=__doc__, formatter_class=raw)
    parser.add_argument("model", type=Path, help="checkpoint (.pt), or any image classifier (.onnx)")
    text = "test images in <class>/ folders, or images without labels"
    parser.add_argument("--test", type=Path, default=ARTIFACTS / "test", metavar="FOLDER", help=text)
    _add_compare_options(parser)
    add_publish_options(parser)
    publish.add_name(parser)
    adapt.add_options(parser.add_argument_group("with an ONNX model"))
    options = parser.parse_args(words)
    onnx = options.model.suffix == ".onnx"
    if onnx != bool(options.labels):
        parser.error("an ONNX model needs --labels, class names, one a line; a checkpoint has its own")
    return finish(parser.prog, lambda: _run(options, [*parser.prog.split(), *words]))


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    text = "images that INT8 is calibrated on (default: a part of the test images, which are not compared then)"
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--onnx", type=Path, default=ARTIFACTS / "onnx", help="folder for the models")
    parser.add_argument("--repository", type=Path, default=publish.REPOSITORY)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="compare on N test images (default: all)")
    parser.add_argument("--rounds", type=positive_int, default=7, help="of the speed measurement (default 7)")
    parser.add_argument("--json", type=Path, help="write the report to this file too")


def add_publish_options(parser: argparse.ArgumentParser) -> None:
    """The options that publishing has wherever the model comes from."""
    add_max_wait(parser)
    parser.add_argument("--force", action="store_true", help=publish.FORCE_HELP)


def _run(options: argparse.Namespace, command: Sequence[str]) -> None:
    if not options.test.is_dir():
        raise ModelError(f"{options.test}: no such folder; `make export` makes it, or give --test")
    sources = Sources(options.test, options.onnx, options.calibration, options.limit, options.rounds)
    fp32, note = options.onnx / "model.onnx", ""
    if options.model.suffix == ".onnx":
        note = adapt.write_adapted(options.model, adapt.read_options(options), fp32)
    else:
        from alexnet_triton.export.to_onnx import open_checkpoint, write_checkpoint  # PyTorch takes seconds to load

        sources.find(open_checkpoint(options.model)[0].classes)  # before the seconds that the model takes
        write_checkpoint(options.model, options.test, fp32)
    settings = {"name": options.name, "force": options.force, "max_wait_s": options.max_wait}
    export_and_publish(fp32, sources, options.repository, command, copy=options.json, note=note, **settings)


def export_and_publish(
    fp32: Path,
    sources: Sources,
    repository: Path,
    command: Sequence[str],
    *,
    copy: Path | None = None,
    note: str = "",
    **settings: Any,
) -> None:
    """Write, compare and publish every precision of an FP32 model, and print what was found.

    Args:
        copy: a second file for the report.
        settings: of `publish.publish`.

    Raises:
        UserError: a file cannot be used or written, FP32 itself fails or is right no more often than chance, or the
            images decide nothing.
    """
    columns = (TextColumn("{task.description:>25}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:  # a bar a stage
        found = export_all(fp32, sources, progress, command)
    verify.show_report(found)
    for path in (sources.onnx / "report.json", *filter(None, [copy])):
        write_json(path, found)
    if not settings.get("force"):
        _demand_better_than_chance(found["rows"][0], fp32)
    version = publish.publish(fp32, sources.test, repository, **settings)
    print(f"version {version} in {repository}" + (f"; {note}" if note else ""))
