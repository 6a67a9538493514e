"""The reference images of a version: those by which a server that decodes, crops or computes wrongly is noticed."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_triton.export.adapt import pictures
from alexnet_triton.export.images import find_images
from alexnet_triton.export.numerics import Runner, openvino, run_in_batches
from alexnet_triton.export.repository import Network
from alexnet_triton.imaging import decode
from alexnet_triton.serving.repository import TOLERANCES, ReferenceAnswer

COUNT = 5
CANDIDATES = 96
# The likeliest class of a good reference image has about this probability: near 1, no fault changes it much.
MIDDLING = 0.6
STEADY = 0.5  # of the tolerance, at most, is what the engines here differ by
SHIFT_PIXELS = 8
HINTS = {"bf16": "bf16", "int8": "f32"}  # OpenVINO's, of the precisions that it runs besides FP32
FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels swapped": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    f"crop {SHIFT_PIXELS} pixels off": lambda pixels: np.roll(pixels, SHIFT_PIXELS, axis=2),
}


@dataclass(frozen=True)
class References:
    """The chosen images, and how far the fault that each kind of `FAULTS` is moves an answer to one of them."""

    answers: tuple[ReferenceAnswer, ...]
    notices: dict[str, float]


def find_candidates(images: Path | None, labels: Sequence[str], size: int) -> list[bytes]:
    """Encoded images: some of those in the <class>/ folders of `images`, and made ones, which have colours.

    Raises:
        ModelError: there are no images, or not of these classes.
    """
    found = [] if images is None else [path.read_bytes() for path in find_images(images, labels, CANDIDATES).paths]
    return found + [_encode(pixels) for pixels in pictures(size)]


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def choose(
    model: Path, candidates: Sequence[bytes], labels: Sequence[str], network: Network, served: dict[str, Path]
) -> References:
    """Choose `COUNT` images: for each fault the one that it changes most, then those of middling confidence.

    Args:
        model: the FP32 model, whose probabilities are the reference answers.
        served: precision -> file, of what a server may run; images on which one of them is unsteady are left out.
    """
    run = _in_batches(openvino(model), network)
    pixels = np.stack([decode(each, network.size) for each in candidates])
    expected = run(pixels)
    allowed = max(TOLERANCES[precision] for precision in served) * np.minimum(1, expected.max(axis=1) / MIDDLING)
    others = [_in_batches(openvino(file, HINTS[name]), network) for name, file in served.items() if name in HINTS]
    unsteady = np.max([0 * allowed, *(_distances(each, pixels, expected) for each in others)], axis=0) / allowed
    moved = {name: _distances(run, fault(pixels), expected) for name, fault in FAULTS.items()}
    order = _order(expected, unsteady, moved)[:COUNT]
    notices = {name: round(float((moved[name] / allowed)[order].max()), 2) for name in moved}
    return References(tuple(_answer(candidates[i], expected[i], labels, float(allowed[i])) for i in order), notices)


def _order(expected: np.ndarray, unsteady: np.ndarray, moved: dict[str, np.ndarray]) -> list[int]:
    """The steadier and less sure half of the candidates, the best first: one a fault, one a class, the rest."""
    off = np.abs(expected.max(axis=1) - MIDDLING) + (unsteady > STEADY)
    pool = [int(i) for i in np.argsort(off, kind="stable")[: max(COUNT, len(off) // 2)]]
    noticing = [max(pool, key=distances.__getitem__) for distances in moved.values()]
    first_of_class = {int(expected[i].argmax()): i for i in reversed(pool)}
    return list(dict.fromkeys([*noticing, *sorted(first_of_class.values(), key=pool.index), *pool]))


def _in_batches(run: Runner, network: Network) -> Runner:
    return lambda pixels: run_in_batches(run, pixels, network.max_batch_size)


def _distances(run: Runner, pixels: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(run(pixels) - expected).max(axis=1)


def _answer(image: bytes, expected: np.ndarray, labels: Sequence[str], tolerance: float) -> ReferenceAnswer:
    probabilities = {index: round(float(value), 7) for index, value in enumerate(expected)}
    return ReferenceAnswer("new", image, labels[int(expected.argmax())], probabilities, tolerance)
