"""The whole way from a checkpoint to a published version: every precision, verified."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from export import onnx_file, quantize, report, to_onnx
from export.errors import ModelError
from export.files import sha256
from export.images import LabelledImages, find_images
from export.networks import plan_report
from export.runners import onnx_runtime, openvino
from export.verify import (
    TIMED_BATCHES,
    TOLERANCE,
    Candidate,
    accuracy,
    check_batches,
    compare,
    half_precision_tolerance,
    measure_rates,
    run_in_batches,
)

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
