"""Candidates against a reference on real images: answers, accuracy, and speed."""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alexnet_triton.export.errors import AccuracyError, ModelError
from alexnet_triton.export.images import LabelledImages

# WAS alexnet_triton.export.numerics: One network in several runtimes, each as a function of uint8 images [N, S, S, 3] to float32 [N, classes].


Runner = Callable[[np.ndarray], np.ndarray]


def onnx_runtime(model: Path) -> Runner:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"{model}: ONNX Runtime does not take it: {str(error).splitlines()[0]}") from error
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino(model: Path, precision: str = "f32") -> Runner:
    """OpenVINO on the CPU; `precision` is its inference precision, f32 or bf16."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": os.cpu_count() or 1}
    try:
        compiled = ov.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"{model}: OpenVINO does not take it: {str(error).strip().splitlines()[-1]}") from error
    return lambda images: compiled(images)[0]


if __name__ == "__main__":
    from alexnet_triton.export.command import stay_quiet_while_loading

    stay_quiet_while_loading()


BATCHES = (1, 2, 7, 32)
TOLERANCE = 1e-5
CHUNK = 96  # images decoded at a time
TIMED_BATCHES = (1, 32)
ROUND_S = 0.5


Rates = dict[tuple[str, str], dict[int, list[float]]]  # (precision, runtime) -> batch size -> images a second


@dataclass(frozen=True)
class Candidate:
    """One way to run the network."""

    precision: str  # fp32, fp16, bf16 or int8
    runtime: str
    path: Path
    run: Runner


@dataclass(frozen=True)
class Comparison:
    """A candidate's answers on a whole test set, beside the reference's.

    `top1`, `top5` and `agreement` (same top-1 class as the reference) are parts of the images.
    """

    precision: str
    runtime: str
    file: str
    megabytes: float
    images: int
    top1: float
    top5: float
    agreement: float
    largest_difference: float
    images_per_second: dict[int, float] = field(default_factory=dict)  # batch size -> median rate
    spread: dict[int, float] = field(default_factory=dict)  # batch size -> (fastest - slowest) / median


def check_batches(
    candidate: Runner, reference: Runner, images: np.ndarray, tolerance: float = TOLERANCE
) -> dict[int, float]:
    """The largest probability difference at each of `BATCHES`, over all of `images`, uint8 [N, S, S, 3].

    Raises:
        AccuracyError: it is above `tolerance`, or the shapes differ.
    """
    expected = run_in_batches(reference, images, max(BATCHES))
    differences = {}
    for batch in BATCHES:
        answer = run_in_batches(candidate, images, batch)
        if answer.shape != expected.shape:
            raise AccuracyError(f"batch {batch}: shape {answer.shape} where the reference gives {expected.shape}")
        differences[batch] = float(np.abs(answer - expected).max())
    worst = max(differences.values())
    if not worst <= tolerance:
        raise AccuracyError(f"probabilities differ by {worst:.2e} from the reference's, more than {tolerance:.0e}")
    return differences


def run_in_batches(runner: Runner, images: np.ndarray, batch: int) -> np.ndarray:
    """All of `images` through a runner, `batch` at a time: float32 [N, classes]."""
    return np.concatenate([runner(images[start : start + batch]) for start in range(0, len(images), batch)])


def compare(
    candidates: Sequence[Candidate],
    images: LabelledImages,
    size: int,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Comparison]:
    """Every candidate on all of `images`; the first is the reference. `advance` hears of each chunk done."""
    answers: list[list[np.ndarray]] = [[] for _ in candidates]
    for start in range(0, len(images), CHUNK):
        pixels = images.pixels(start, start + CHUNK, size)
        for candidate, parts in zip(candidates, answers, strict=True):
            parts.append(run_in_batches(candidate.run, pixels, 32))
        advance(len(pixels))
    probabilities = [np.concatenate(parts) for parts in answers]
    return [
        _comparison(candidate, own, probabilities[0], images.labels)
        for candidate, own in zip(candidates, probabilities, strict=True)
    ]


def _comparison(candidate: Candidate, own: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> Comparison:
    top1, top5 = accuracy(own, labels)
    return Comparison(
        candidate.precision,
        candidate.runtime,
        candidate.path.name,
        round(candidate.path.stat().st_size / 1e6, 1),
        len(labels),
        top1,
        top5,
        float((own.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        float(np.abs(own - reference).max()),
    )


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Top-1 and top-5 as parts: probabilities float [N, classes], labels int64 [N]."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    hits = best == labels[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())


def measure_rates(
    candidates: Sequence[Candidate],
    pixels: np.ndarray,
    rounds: int,
    advance: Callable[[int], None] = lambda rounds: None,
) -> Rates:
    """Images a second of each candidate at each of `TIMED_BATCHES`, a figure a round.

    The candidates take turns in every round, so that what else the machine does meets them all.
    `pixels` is uint8 [N, S, S, 3] with N at least 32.
    """
    rates: Rates = {(each.precision, each.runtime): {batch: [] for batch in TIMED_BATCHES} for each in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            for batch in TIMED_BATCHES:
                rates[candidate.precision, candidate.runtime][batch].append(_rate(candidate.run, pixels[:batch]))
        advance(1)
    return rates


def _rate(run: Runner, images: np.ndarray) -> float:
    run(images)
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < ROUND_S:
        run(images)
        calls += 1
    return calls * len(images) / elapsed


def half_precision_tolerance(probabilities: np.ndarray, layers: int) -> float:
    """What rounding to half precision may change of probabilities, float [N, classes].

    A product in half precision is off by 2^-12 of itself on average (half of the unit roundoff 2^-11, Higham,
    Accuracy and Stability of Numerical Algorithms, 2.1); those of `layers` layers one after another add up as
    independent errors do, by the square root. Of logits that lie `spread` apart this is a probability's error
    times at most 1/4, the largest slope of softmax.
    """
    smallest = np.maximum(probabilities.min(axis=1), np.finfo(np.float32).tiny)
    spread = float(np.log(probabilities.max(axis=1) / smallest).max())
    return 0.25 * math.sqrt(layers) * 2.0**-12 * max(spread, 1.0)


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the distance of the extremes as a part of it."""
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median


if __name__ == "__main__":
    from alexnet_triton.export.verify import main

    sys.exit(main())
