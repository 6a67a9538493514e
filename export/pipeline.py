"""The whole way from a checkpoint to a published version: every precision, verified."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from alexnet_triton.common.files import sha256
from alexnet_triton.export import onnx_file, quantize, report, to_onnx
from alexnet_triton.export.command import finish, stay_quiet_while_loading
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.images import LabelledImages, find_images
from alexnet_triton.export.numerics import (
    TIMED_BATCHES,
    TOLERANCE,
    Candidate,
    accuracy,
    check_batches,
    compare,
    half_precision_tolerance,
    measure_rates,
    onnx_runtime,
    openvino,
    run_in_batches,
)
from alexnet_triton.export.verify import plan_report

CALIBRATION_IMAGES = 128  # entropy and percentile calibration keep all activations of all of them
SELECTION_IMAGES = 1000
FP16_CHECK_IMAGES = 64  # ONNX Runtime has slow kernels for half precision; the whole test set follows
LARGEST_TIMED_BATCH = max(TIMED_BATCHES)


@dataclass(frozen=True)
class Sources:
    """What an export reads, and the folder it writes to."""

    checkpoint: Path
    test: Path  # <class>/ folders, the whole test set
    calibration: Path  # <class>/ folders, training images
    onnx: Path
    images: int | None = None  # of the test set; all, where it is not said
    rounds: int = 7  # of the speed measurement


def export_all(sources: Sources, progress: Progress, arguments: list[str]) -> dict[str, Any]:
    """Write fp32, fp16 and int8 models, compare them on the whole test set, and say what was found.

    Raises:
        ExportError, TrainingError: what cannot be used, or answers wrongly.
    """
    source, source_sha256 = to_onnx.open_checkpoint(sources.checkpoint)
    size = source.network.input_size
    test = find_images(sources.test, source.classes, sources.images)
    calibration = find_images(sources.calibration, source.classes, CALIBRATION_IMAGES + SELECTION_IMAGES)
    _demand(test, LARGEST_TIMED_BATCH, sources.test)
    _demand(calibration, CALIBRATION_IMAGES + LARGEST_TIMED_BATCH, sources.calibration)
    fp32, fp16, int8 = (sources.onnx / name for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"))
    checks = _bar(progress, "fp32 and fp16", 2)
    pixels = test.pixels(0, to_onnx.CHECK_IMAGES, size)
    to_onnx.save(to_onnx.export(source, source_sha256), fp32)
    check_batches(onnx_runtime(fp32), to_onnx.pytorch_runner(source), pixels, TOLERANCE)
    checks(1)
    half = to_onnx.export(source, source_sha256, "fp16")
    to_onnx.save(half, fp16)
    layers = sum(node.op_type in onnx_file.WEIGHTED for node in half.graph.node)
    some = pixels[:FP16_CHECK_IMAGES]
    tolerance = half_precision_tolerance(run_in_batches(onnx_runtime(fp32), some, 32), layers)
    check_batches(onnx_runtime(fp16), onnx_runtime(fp32), some, tolerance)
    checks(1)
    methods = quantize_best(fp32, int8, calibration, size, progress)
    candidates = [
        Candidate("fp32", "ONNX Runtime", fp32, onnx_runtime(fp32)),
        Candidate("fp16", "ONNX Runtime", fp16, onnx_runtime(fp16)),
        Candidate("fp32", "OpenVINO", fp32, openvino(fp32, "f32")),
        Candidate("bf16", "OpenVINO", fp32, openvino(fp32, "bf16")),
        Candidate("int8", "OpenVINO", int8, openvino(int8, "f32")),
    ]
    rows = compare(candidates, test, size, _bar(progress, "comparing on the test set", len(test)))
    rates = measure_rates(
        candidates[2:], test.pixels(0, 32, size), sources.rounds, _bar(progress, "measuring speed", sources.rounds)
    )
    return report.build(
        report.with_rates(rows, rates),
        arguments,
        tensorrt=plan_report(sources.onnx / "model.plan"),
        calibration=methods,
        checkpoint_sha256=source_sha256,
        sha256={path.name: sha256(path) for path in (fp32, fp16, int8)},
    )


def quantize_best(
    fp32: Path, int8: Path, images: LabelledImages, size: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """Write `int8` by the calibration method that answers best on images that it was not calibrated on.

    Returns, for each method, top-1 and the part of the images on which it agrees with `fp32`.
    """
    pixels = images.pixels(0, len(images), size)
    calibrating, held_out = pixels[:CALIBRATION_IMAGES], pixels[CALIBRATION_IMAGES:]
    labels = images.labels[CALIBRATION_IMAGES:]
    expected = run_in_batches(openvino(fp32), held_out, 32).argmax(axis=1)
    found: dict[str, dict[str, float]] = {}
    for method in quantize.METHODS:
        candidate = int8.with_name(f"{method}.{int8.name}")
        bar = _bar(progress, f"int8, {method}", CALIBRATION_IMAGES)
        quantize.quantize(fp32, candidate, calibrating, method, bar)
        answers = run_in_batches(openvino(candidate), held_out, 32)
        agreement = float((answers.argmax(axis=1) == expected).mean())
        found[method] = {"top1": accuracy(answers, labels)[0], "agreement": agreement}
    best = max(found, key=lambda method: (found[method]["top1"], found[method]["agreement"]))
    for method in found:
        candidate = int8.with_name(f"{method}.{int8.name}")
        candidate.replace(int8) if method == best else candidate.unlink()
    return found


def _demand(images: LabelledImages, count: int, folder: Path) -> None:
    if len(images) < count:
        raise ModelError(f"{folder}: {len(images)} images where {count} are needed; add some")


def _bar(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    task = progress.add_task(name, total=total, note="")
    return lambda done: progress.advance(task, done)


# WAS alexnet_triton.export.pipeline: python -m export all CHECKPOINT: every precision, verified, reported and published.


ARTIFACTS = Path("artifacts")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="alexnet-triton export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, kind in (("test", "test"), ("calibration", "training")):
        default = ARTIFACTS / name
        what = f"{kind} images in <class>/ folders (default {default})"
        parser.add_argument(f"--{name}", type=Path, default=default, metavar="FOLDER", help=what)
    parser.add_argument("--onnx", type=Path, default=ARTIFACTS / "onnx", help="folder for the models")
    parser.add_argument("--repository", type=Path, default=ARTIFACTS / "model_repository")
    parser.add_argument("--images", type=int, help="test images to compare on (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed measurement (default 7)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--force", action="store_true", help="publish precisions that lose too much, on the record")
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

    from alexnet_triton.export import publish, report

    sources = Sources(
        options.checkpoint, options.test, options.calibration, options.onnx, options.images, options.rounds
    )
    columns = (TextColumn("{task.description:>25}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:  # a bar a stage
        found = export_all(sources, progress, ["alexnet-triton", "export", *given])
    report.show(found)
    for path in (options.onnx / "report.json", *filter(None, [options.json])):
        report.write(found, path)
    version = publish.publish(options.onnx / "model.onnx", options.test, options.repository, force=options.force)
    print(f"version {version} in {options.repository}")


if __name__ == "__main__":
    stay_quiet_while_loading()
    sys.exit(main())
