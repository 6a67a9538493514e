"""What a classifier answers to a few pictures, one by one and in batches; its graph is one of `graph_edit`'s."""

import numpy as np
import onnx

from alexnet_triton.export import graph_edit
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.numerics import Runner, onnx_session
from alexnet_triton.export.onnx_file import first_line

BATCHES = (1, 2, 7)  # that a graph has to answer as it answers single images
# A fraction of the scores' spread: kernels of other batch sizes round differently, mixed images differ by far more.
TOLERANCE = 5e-3


def pictures(size: int) -> np.ndarray:
    """Seven pictures of coloured squares, from dark to bright: uint8 [7, size, size, 3]."""
    brightness = np.linspace(60, 255, max(BATCHES))[:, None, None, None]
    squares = np.random.default_rng(0).uniform(size=(max(BATCHES), 8, 8, 3)) * brightness
    side = -(-size // 8)
    return squares.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size].astype(np.uint8)


def single_scores(model: onnx.ModelProto, batch: int | None, pixels: np.ndarray, name: object) -> np.ndarray:
    """The scores of each image, alone or beside copies of itself in a fixed batch: float32 [N, classes].

    Raises:
        ModelError: ONNX Runtime cannot run the model, or its scores are not finite.
    """
    copies = batch or 1
    try:
        run = runner(_with_batch(model, copies))
        scores = np.concatenate([run(np.repeat(image[None], copies, axis=0))[:1] for image in pixels])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(f"{name}: ONNX Runtime cannot run it: {first_line(error)}; export it again") from error
    if not np.isfinite(scores).all():
        raise ModelError(f"{name}: its scores are not finite; check --mean and --std")
    return scores


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether each row, of float [N, classes], is a distribution."""
    return bool((scores >= -1e-6).all() and np.allclose(scores.sum(axis=1), 1, atol=5e-3))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Logits [N, classes] to probabilities."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def with_widest_batch(
    model: onnx.ModelProto, batch: int | None, pixels: np.ndarray, singles: np.ndarray, name: object
) -> tuple[onnx.ModelProto, str]:
    """The model with a free batch, if it then answers as `singles`, its scores of each image; else with 1, and why.

    Raises:
        ModelError: it works in batches of another fixed size only.
    """
    free = _with_batch(model, None)
    if _answers_alike(free, pixels, singles):
        return free, ""
    graph_edit.free_reshapes(free, batch or 1)
    if _answers_alike(free, pixels, singles):
        return free, ""
    if batch not in (None, 1):
        raise ModelError(f"{name}: works in batches of {batch} only; export it with a dynamic batch")
    reason = "its graph takes one image at a time" if batch else "its answers to batches and to single images differ"
    return _with_batch(model, 1), f"served without batching: {reason}; export it with a dynamic batch"


def _with_batch(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph_edit.set_batch(copy, batch)
    return copy


def _answers_alike(candidate: onnx.ModelProto, pixels: np.ndarray, singles: np.ndarray) -> bool:
    allowed = TOLERANCE * float(np.ptp(singles)) + 1e-7
    try:
        run = runner(candidate)
        answers = [(run(pixels[:batch]), singles[:batch]) for batch in BATCHES]
    except Exception:  # a graph that takes no batches fails in as many ways as there are operators
        return False
    return all(a.shape == b.shape and np.abs(a - b).max() <= allowed for a, b in answers)


def runner(model: onnx.ModelProto) -> Runner:
    """A model in memory in ONNX Runtime."""
    return onnx_session(model.SerializeToString())
