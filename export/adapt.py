"""Any image classifier in ONNX to this project's signature: uint8 images [N, S, S, 3] to float32 probabilities."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from alexnet_triton.common.command import positive_int
from alexnet_triton.export import graph_edit, onnx_file
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.graph_edit import ImageInput
from alexnet_triton.export.numerics import Runner, onnx_session
from alexnet_triton.export.onnx_file import INPUT, OUTPUT, first_line

KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8)
OLDEST_OPSET = 7  # Sub and Div broadcast from it on
LARGEST_BATCH = 32
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
TRIED_BATCHES = (1, 2, 7)  # that a graph has to answer as it answers single images
# A fraction of the scores' spread: kernels of other batch sizes round differently, mixed images differ by far more.
TOLERANCE = 5e-3


# Mean and deviation of pixel values 0 to 255 that networks of these families take.
PRESETS = {
    "torchvision": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "tf": ((127.5,) * 3, (127.5,) * 3),
    "none": (NO_MEAN, NO_STD),
}


@dataclass(frozen=True)
class Adaptation:
    """What a user says of a classifier: as the arguments of `adapt`."""

    labels: tuple[str, ...]
    mean: tuple[float, ...] = NO_MEAN
    std: tuple[float, ...] = NO_STD
    size: int | None = None
    scores: str = "detect"


@dataclass(frozen=True)
class Adapted:
    """A classifier in this project's signature."""

    model: onnx.ModelProto
    size: int  # height and width of its input
    max_batch_size: int
    note: str  # why it is served without batching; else empty


def adapt(
    model: onnx.ModelProto,
    labels: tuple[str, ...],
    mean: Sequence[float] = NO_MEAN,
    std: Sequence[float] = NO_STD,
    *,
    name: object = "the model",
    scores: str = "detect",
    size: int | None = None,
) -> Adapted:
    """Bring a classifier into the project's signature, and check that its answers stay.

    The batch becomes free if the graph then answers batches of 2 and 7 as it answers single
    images; else it is 1, and the note says why.

    Args:
        labels: the classes, in the order of the model's output.
        mean, std: per RGB channel, of pixel values 0 to 255: the model takes (x - mean) / std.
        name: what errors call the model, such as its path.
        scores: logits or probabilities, as the model gives; detect finds out on a few images.
        size: height and width, if the model does not fix them.

    Raises:
        ModelError: the input or output is of another kind, the labels do not fit, or ONNX Runtime cannot run it.
    """
    image = _image(model, name, size)
    if image.kind == TensorProto.UINT8 and (tuple(mean), tuple(std)) != (NO_MEAN, NO_STD):
        raise ModelError(f"{name}: takes uint8 pixels and normalizes them itself; leave out --mean and --std")
    _check_opset(model, name)
    pixels = pictures(image.size)
    scoring = _scoring(model, image, mean, std, name)
    singles = _single_scores(scoring, image.batch, pixels, name)
    if singles.shape[1] != len(labels):
        raise ModelError(f"{name}: gives {singles.shape[1]} scores for {len(labels)} labels; give one label a score")
    adapted, note = _with_widest_batch(scoring, image.batch, pixels, singles, name)
    softmax = scores == "logits" or (scores == "detect" and not _are_probabilities(singles))
    graph_edit.give_probabilities(adapted, OUTPUT, len(labels), softmax=softmax)
    graph_edit.set_batch(adapted, 1 if note else None)
    _check_answers(adapted, pixels, _softmax(singles) if softmax else singles, name)
    _describe(adapted, labels, mean, std, softmax)
    return Adapted(adapted, image.size, 1 if note else LARGEST_BATCH, note)


def _image(model: onnx.ModelProto, name: object, size: int | None) -> ImageInput:
    value = onnx_file.image_input(model, name)
    shape, kind = onnx_file.dims(value), value.type.tensor_type.elem_type
    has = f"{value.name} {TensorProto.DataType.Name(kind)} [{', '.join(str(n or 'any') for n in shape)}]"
    if kind not in KINDS:
        raise ModelError(f"{name}: takes {has}; export it with float32, float16 or uint8 images")
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ModelError(f"{name}: takes {has}, no RGB image; export it with [N, 3, S, S] or [N, S, S, 3]")
    channels_first = shape[1] == 3
    sides = {side or size for side in (shape[2:] if channels_first else shape[1:3])}
    if None in sides:
        raise ModelError(f"{name}: takes {has}; give the height and width of its training images with --size")
    if len(sides) != 1 or (size is not None and sides != {size}):
        raise ModelError(f"{name}: takes {has}; export it for square images{f' of {size} pixels' if size else ''}")
    return ImageInput(value.name, kind, channels_first, int(sides.pop() or 0), shape[0])


def _check_opset(model: onnx.ModelProto, name: object) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ModelError(f"{name}: opset {opset}; export it with {OLDEST_OPSET} or newer, best 18")


def _scoring(
    model: onnx.ModelProto, image: ImageInput, mean: Sequence[float], std: Sequence[float], name: object
) -> onnx.ModelProto:
    """A copy of the model with this project's input, and its scores as output."""
    outputs = [value.name for value in model.graph.output]
    if len(outputs) != 1:
        raise ModelError(f"{name}: {len(outputs)} outputs ({', '.join(outputs)}); export it with the scores alone")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph_edit.free_names(copy.graph, (INPUT, OUTPUT))
    own = replace(image, name=onnx_file.image_input(copy, name).name)
    graph_edit.take_images(copy, own, INPUT, mean, std)
    graph_edit.give_scores(copy)
    return copy


def pictures(size: int) -> np.ndarray:
    """Seven pictures of coloured squares, from dark to bright: uint8 [7, size, size, 3]."""
    brightness = np.linspace(60, 255, max(TRIED_BATCHES))[:, None, None, None]
    squares = np.random.default_rng(0).uniform(size=(max(TRIED_BATCHES), 8, 8, 3)) * brightness
    side = -(-size // 8)
    return squares.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size].astype(np.uint8)


def _single_scores(model: onnx.ModelProto, batch: int | None, pixels: np.ndarray, name: object) -> np.ndarray:
    """The scores of each image, alone or beside copies of itself in a fixed batch: float32 [N, classes].

    Raises:
        ModelError: ONNX Runtime cannot run the model, or its scores are not finite.
    """
    copies = batch or 1
    try:
        run = _runner(_with_batch(model, copies))
        scores = np.concatenate([run(np.repeat(image[None], copies, axis=0))[:1] for image in pixels])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(f"{name}: ONNX Runtime cannot run it: {first_line(error)}; export it again") from error
    if not np.isfinite(scores).all():
        raise ModelError(f"{name}: its scores are not finite; check --mean and --std")
    return scores


def _are_probabilities(scores: np.ndarray) -> bool:
    """Whether each row, of float [N, classes], is a distribution."""
    return bool((scores >= -1e-6).all() and np.allclose(scores.sum(axis=1), 1, atol=5e-3))


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Logits [N, classes] to probabilities."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _with_widest_batch(
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
        run = _runner(candidate)
        answers = [(run(pixels[:batch]), singles[:batch]) for batch in TRIED_BATCHES]
    except Exception:  # a graph that takes no batches fails in as many ways as there are operators
        return False
    return all(a.shape == b.shape and np.abs(a - b).max() <= allowed for a, b in answers)


def _runner(model: onnx.ModelProto) -> Runner:
    return onnx_session(model.SerializeToString())


def _check_answers(model: onnx.ModelProto, pixels: np.ndarray, expected: np.ndarray, name: object) -> None:
    run = _runner(model)
    answers = np.concatenate([run(image[None]) for image in pixels])
    difference = float(np.abs(answers - expected).max())
    if difference > TOLERANCE:
        raise ModelError(f"{name}: its answers differ by {difference:.1e} once adapted; report this model")


def _describe(
    model: onnx.ModelProto, labels: tuple[str, ...], mean: Sequence[float], std: Sequence[float], softmax: bool
) -> None:
    adapted = {"mean": list(mean), "std": list(std), "scores": "logits" if softmax else "probabilities"}
    own = {"classes": json.dumps(labels, ensure_ascii=False), "adapted": json.dumps(adapted)}
    onnx.helper.set_model_props(model, onnx_file.metadata(model) | own)


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of a model's output.

    Raises:
        ModelError: there is no such file, it is not text, or a line is empty.
    """
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: no readable list of labels: {first_line(error)}; give one class a line") from error
    if not all(labels) or not labels:
        empty = labels.index("") + 1 if labels else 1
        raise ModelError(f"{path}: line {empty} is empty; give one class a line")
    return labels


def write_adapted(source: Path, how: Adaptation, output: Path) -> str:
    """Write any classifier in this project's signature; returns a note if it is served without batching.

    Raises:
        ModelError: as `adapt`.
        WriteError: the file cannot be written.
    """
    model = onnx_file.read(source)
    adapted = adapt(model, how.labels, how.mean, how.std, name=source, scores=how.scores, size=how.size)
    onnx_file.write(adapted.model, output)
    return adapted.note


def add_options(group: argparse._ArgumentGroup) -> None:
    """The options that say what a classifier takes and gives."""
    group.add_argument("--labels", type=Path, help="class names, one a line")
    text = "normalisation of pixels: that of torchvision's or TensorFlow's networks, or none; else --mean and --std"
    group.add_argument("--preset", choices=PRESETS, help=text)
    group.add_argument("--mean", type=per_channel, metavar="R,G,B")
    group.add_argument("--std", type=positive_per_channel, metavar="R,G,B")
    group.add_argument("--size", type=positive_int, help="height and width, if the model takes any")
    scores = group.add_mutually_exclusive_group()
    for kind in ("logits", "probabilities"):
        text = f"the model gives {kind} (default: found out on a few images)"
        scores.add_argument(f"--{kind}", dest="scores", action="store_const", const=kind, default="detect", help=text)


def read_options(options: argparse.Namespace) -> Adaptation:
    """What `add_options` was given.

    Raises:
        ModelError: the labels cannot be read, or a preset is given beside numbers.
    """
    if options.preset and (options.mean or options.std):
        raise ModelError(f"--preset {options.preset} has a mean and deviation: leave out --mean and --std")
    mean, std = PRESETS[options.preset or "none"]
    labels = read_labels(options.labels)
    return Adaptation(labels, options.mean or mean, options.std or std, options.size, options.scores)


def per_channel(text: str) -> tuple[float, ...]:
    """An argument's type: three numbers with commas between them, or one for all channels."""
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers with commas between them")
    return values if len(values) == 3 else values * 3


def positive_per_channel(text: str) -> tuple[float, ...]:
    """An argument's type: as `per_channel`, all above 0."""
    values = per_channel(text)
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers above 0")
    return values
