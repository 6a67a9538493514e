"""One network in several runtimes, each compared with a reference on real images: answers, accuracy, speed."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from alexnet_triton.common.files import is_image
from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.export.errors import AccuracyError, ModelError
from alexnet_triton.imaging import ImageError, decode
from alexnet_triton.serving.engine import openvino_core, precision_hint, read_network
from alexnet_triton.training.log import topk_hits


@dataclass(frozen=True)
class LabelledImages:
    """Image files and their labels, int64 [N], None where the folder has none, and how many files it has."""

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    in_folder: int

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, size: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The images from `start` to `stop`, decoded as the server decodes them: uint8 [N, size, size, 3].

        Raises:
            ModelError: a file is not an image.
        """
        return np.stack([_decode(path, size) for path in self.paths[start:stop]])

    def split(self, count: int) -> tuple["LabelledImages", "LabelledImages"]:
        """The first `count` images, and the others."""
        first, rest = slice(None, count), slice(count, None)
        return self._part(first, self.in_folder), self._part(rest, self.in_folder - count)

    def first(self, count: int | None) -> "LabelledImages":
        """The first `count` images, of a folder that has as many as before; all where it is None."""
        return self._part(slice(count), self.in_folder)

    def _part(self, part: slice, in_folder: int) -> "LabelledImages":
        labels = None if self.labels is None else self.labels[part]
        return LabelledImages(self.paths[part], labels, in_folder)


def find_images(folder: Path, classes: Sequence[str], limit: int | None = None) -> LabelledImages:
    """The files `folder/<class>/*`, in a fixed order that mixes the classes; at most `limit` of them.

    A folder without such folders may hold images itself: they have no labels.

    Raises:
        ModelError: there are none, or a folder is not named after a class.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; write one with alexnet-triton pictures --to {folder}")
    labels = {name: label for label, name in enumerate(classes)}
    found = sorted(path for path in folder.glob("*/*") if is_image(path))
    unknown = next((path.parent for path in found if path.parent.name not in labels), None)
    if unknown is not None:
        raise ModelError(f"{unknown}: the model has no class of this name; its classes: {', '.join(classes[:10])}")
    unlabelled = [] if found else sorted(path for path in folder.iterdir() if is_image(path))
    if not found and not unlabelled:
        raise ModelError(f"{folder}: no images, neither in <class>/ folders nor in it")
    order = np.random.default_rng(0).permutation(len(found or unlabelled))[:limit]
    paths = tuple((found or unlabelled)[i] for i in order)
    own = np.array([labels[path.parent.name] for path in paths], np.int64) if found else None
    return LabelledImages(paths, own, len(found or unlabelled))


def _decode(path: Path, size: int) -> np.ndarray:
    try:
        return decode(path.read_bytes(), size)
    except (OSError, ImageError) as error:
        raise ModelError(f"{path}: {error}; remove or replace it") from error


BATCHES = (1, 2, 7, 32)
TOLERANCE = 1e-5
CHUNK = 96  # images decoded at a time
TIMED_BATCHES = (1, 32)
ROUND_S, LEAST_CALLS = 0.05, 3  # of a candidate, in a round

Runner = Callable[[np.ndarray], np.ndarray]  # uint8 images [N, S, S, 3] to float32 [N, classes]
Rates = dict[tuple[str, str], dict[int, list[float]]]  # (precision, runtime) -> batch size -> images a second


def onnx_runtime(model: Path) -> Runner:
    """A file in ONNX Runtime on the CPU.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    try:
        return onnx_session(model)
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"{model}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error


def onnx_session(model: Path | bytes) -> Runner:
    """A file, or a model in memory, in ONNX Runtime on the CPU; errors are ONNX Runtime's own."""
    import onnxruntime  # slow to load, as OpenVINO below

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told by an exception
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # threads that wait leave the cores to others
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino(model: Path, precision: str = "fp32") -> Runner:
    """A file in OpenVINO on the CPU, as a server runs it in one of `serving.engine.PRECISIONS`.

    Raises:
        ModelError: OpenVINO cannot compile it.
    """
    try:
        network = read_network(model, precision)
        hint = precision_hint(network, precision)
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": usable_cores()}
        compiled = openvino_core().compile_model(network, "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"{model}: OpenVINO cannot compile it: {str(error).strip().splitlines()[-1]}") from error
    return lambda images: compiled(images)[0]


@dataclass(frozen=True)
class Candidate:
    """One way to run the network."""

    precision: str  # fp32, fp16, bf16 or int8
    runtime: str
    path: Path
    run: Runner
    batch: int = max(BATCHES)  # the largest that it takes


@dataclass(frozen=True)
class Comparison:
    """A candidate's answers on a whole test set, beside the reference's.

    `top1`, `top5` and `agreement` (same top-1 class as the reference) are fractions of the images; the first two are
    None for images without labels. `distance` is the mean over the images of half the sum of the absolute differences
    of the probabilities: 0 for equal ones, at most 1 (total variation).
    """

    precision: str
    runtime: str
    file: str
    megabytes: float
    images: int
    top1: float | None
    top5: float | None
    agreement: float
    distance: float
    largest_difference: float
    images_per_second: dict[int, float] = field(default_factory=dict)  # batch size -> median rate
    spread: dict[int, float] = field(default_factory=dict)  # batch size -> (fastest - slowest) / median


def check_batches(
    candidate: Runner,
    reference: Runner,
    images: np.ndarray,
    tolerance: float = TOLERANCE,
    batches: Sequence[int] = BATCHES,
) -> dict[int, float]:
    """The largest probability difference at each size of batch, over all of `images`, uint8 [N, S, S, 3].

    Raises:
        AccuracyError: it is above `tolerance`, or the shapes differ.
    """
    expected = run_in_batches(reference, images, max(batches))
    differences = {}
    for batch in batches:
        answer = run_in_batches(candidate, images, batch)
        if answer.shape != expected.shape:
            raise AccuracyError(f"batch {batch}: shape {answer.shape}, but the reference gives {expected.shape}")
        differences[batch] = float(np.abs(answer - expected).max())
    worst = max(differences.values())
    if not worst <= tolerance:
        raise AccuracyError(f"probabilities differ by {worst:.2e} from the reference's, more than {tolerance:.0e}")
    return differences


def run_in_batches(runner: Runner, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """All of `images` through a runner, `batch` at a time: float32 [N, classes]."""
    return np.concatenate([runner(images[start : start + batch]) for start in range(0, len(images), batch)])


def compare(
    candidates: Sequence[Candidate], images: LabelledImages, size: int, advance: Callable[[int], None]
) -> list[Comparison]:
    """Every candidate on all of `images`; the first is the reference. `advance` is called with the images done."""
    answers: list[list[np.ndarray]] = [[] for _ in candidates]
    for start in range(0, len(images), CHUNK):
        pixels = images.pixels(size, start, start + CHUNK)
        for candidate, chunks in zip(candidates, answers, strict=True):
            chunks.append(run_in_batches(candidate.run, pixels, candidate.batch))
        advance(len(pixels))
    probabilities = [np.concatenate(chunks) for chunks in answers]
    both = zip(candidates, probabilities, strict=True)
    return [_comparison(candidate, own, probabilities[0], images.labels) for candidate, own in both]


def _comparison(candidate: Candidate, own: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> Comparison:
    return Comparison(
        candidate.precision,
        candidate.runtime,
        candidate.path.name,
        round(candidate.path.stat().st_size / 1e6, 1),
        len(own),
        None if labels is None else topk_hits(own, labels, 1),
        None if labels is None else topk_hits(own, labels, 5),
        float((own.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        float(np.abs(own - reference).sum(axis=1).mean() / 2),
        float(np.abs(own - reference).max()),
    )


def measure_rates(
    candidates: Sequence[Candidate], pixels: np.ndarray, rounds: int, advance: Callable[[int], None]
) -> Rates:
    """Images a second of each candidate at each of `TIMED_BATCHES`, a figure a round; `advance` is called after each.

    The candidates take turns in every round, so that other load on the machine affects them all alike.
    `pixels` is uint8 [N, S, S, 3] with N at least 32.
    """
    rates: Rates = {
        (each.precision, each.runtime): {batch: [] for batch in TIMED_BATCHES if batch <= each.batch}
        for each in candidates
    }
    for _ in range(rounds):
        for candidate in candidates:
            for batch, measured in rates[candidate.precision, candidate.runtime].items():
                measured.append(_rate(candidate.run, pixels[:batch]))
        advance(1)
    return rates


def _rate(run: Runner, images: np.ndarray) -> float:
    run(images)
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < ROUND_S or calls < LEAST_CALLS:
        run(images)
        calls += 1
    return calls * len(images) / elapsed


def with_rates(rows: Sequence[Comparison], rates: Rates) -> list[Comparison]:
    """Rows with the medians and spreads of their rates, where those were measured."""
    filled = []
    for row in rows:
        measured = rates.get((row.precision, row.runtime), {})
        medians = {batch: statistics.median(values) for batch, values in measured.items() if values}
        spreads = {batch: round((max(measured[batch]) - min(measured[batch])) / medians[batch], 3) for batch in medians}
        rounded = {batch: round(median, 1) for batch, median in medians.items()}
        filled.append(replace(row, images_per_second=rounded, spread=spreads))
    return filled


def half_precision_tolerance(probabilities: np.ndarray, layers: int) -> float:
    """How much rounding to half precision may change probabilities, float [N, classes].

    A product in half precision has an average error of 2^-12 of itself (half of the unit roundoff 2^-11, Higham,
    Accuracy and Stability of Numerical Algorithms, 2.1). The errors of `layers` layers are independent, so they add
    up by the square root. For logits that lie `spread` apart, the error of a probability is at most 1/4 of theirs,
    the largest slope of softmax.
    """
    smallest = np.maximum(probabilities.min(axis=1), np.finfo(np.float32).tiny)
    spread = float(np.log(probabilities.max(axis=1) / smallest).max())
    return 0.25 * math.sqrt(layers) * 2.0**-12 * max(spread, 1.0)
