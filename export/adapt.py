"""Any image classifier in ONNX to this project's signature: uint8 images [N, S, S, 3] to float32 probabilities.

    python -m alexnet_triton.export.adapt resnet50.onnx --labels labels.txt --output adapted.onnx \\
        --mean 123.675,116.28,103.53 --scale 58.395,57.12,57.375

Mean and scale are of pixel values 0 to 255: the network sees (x - mean) / scale.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from alexnet_triton.export import graph_edit, onnx_file, probe
from alexnet_triton.export.command import finish
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.graph_edit import ImageInput
from alexnet_triton.export.onnx_file import INPUT, OUTPUT, first_line

if __name__ == "__main__":
    from alexnet_triton.export.command import stay_quiet_while_loading

    stay_quiet_while_loading()


KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8)
OLDEST_OPSET = 7  # Sub and Div broadcast from it on
LARGEST_BATCH = 32
NO_MEAN, NO_SCALE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Adapted:
    """A classifier in this project's signature."""

    model: onnx.ModelProto
    size: int  # height and width of its input
    max_batch_size: int
    note: str  # what could not be had; empty where all could


def adapt(
    model: onnx.ModelProto,
    labels: tuple[str, ...],
    mean: Sequence[float] = NO_MEAN,
    scale: Sequence[float] = NO_SCALE,
    *,
    name: object = "the model",
    scores: str = "detect",
    size: int | None = None,
) -> Adapted:
    """Bring a classifier into the project's signature, and see that it answers as before.

    A fixed batch is made free where the graph then answers batches of 2 and 7 as it answers single
    images; else it is 1, and the note says so.

    Args:
        labels: the classes, in the order of the model's output.
        mean, scale: per RGB channel, of pixel values 0 to 255.
        name: what errors call the model, such as its path.
        scores: logits or probabilities is what the model gives; detect finds out on a few images.
        size: height and width, where the model does not fix them.

    Raises:
        ModelError: the model has another kind of input or output, the labels do not fit, or ONNX
            Runtime cannot run it.
    """
    image = _image(model, name, size)
    if image.kind == TensorProto.UINT8 and (tuple(mean), tuple(scale)) != (NO_MEAN, NO_SCALE):
        raise ModelError(f"{name}: takes uint8 pixels, so mean and scale are its own; leave out --mean and --scale")
    _check_opset(model, name)
    pixels = probe.pictures(image.size)
    scoring = _scoring(model, image, mean, scale, name)
    singles = probe.single_scores(scoring, image.batch, pixels, name)
    if singles.shape[1] != len(labels):
        raise ModelError(f"{name}: gives {singles.shape[1]} scores for {len(labels)} labels; give one label a score")
    adapted, note = probe.with_widest_batch(scoring, image.batch, pixels, singles, name)
    softmax = scores == "logits" or (scores == "detect" and not probe.are_probabilities(singles))
    graph_edit.give_probabilities(adapted, OUTPUT, len(labels), softmax=softmax)
    graph_edit.set_batch(adapted, 1 if note else None)
    _check_answers(adapted, pixels, probe.softmax(singles) if softmax else singles, name)
    _describe(adapted, labels, mean, scale, softmax)
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
        raise ModelError(f"{name}: takes {has}; say which height and width it was trained at with --size")
    if len(sides) != 1 or (size is not None and sides != {size}):
        raise ModelError(f"{name}: takes {has}; export it for square images{f' of {size} pixels' if size else ''}")
    return ImageInput(value.name, kind, channels_first, int(sides.pop() or 0), shape[0])


def _check_opset(model: onnx.ModelProto, name: object) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ModelError(f"{name}: opset {opset}; export it with {OLDEST_OPSET} or newer, best 18")


def _scoring(
    model: onnx.ModelProto, image: ImageInput, mean: Sequence[float], scale: Sequence[float], name: object
) -> onnx.ModelProto:
    """The model with this project's input, and its scores for output."""
    outputs = [value.name for value in model.graph.output]
    if len(outputs) != 1:
        raise ModelError(f"{name}: {len(outputs)} outputs ({', '.join(outputs)}); export it with the scores alone")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph_edit.free_names(copy.graph, (INPUT, OUTPUT))
    own = replace(image, name=onnx_file.image_input(copy, name).name)
    graph_edit.take_images(copy, own, INPUT, mean, scale)
    graph_edit.give_scores(copy)
    return copy


def _check_answers(model: onnx.ModelProto, pixels: np.ndarray, expected: np.ndarray, name: object) -> None:
    run = probe.runner(model)
    difference = max(
        float(np.abs(run(image[None])[0] - wanted).max()) for image, wanted in zip(pixels, expected, strict=True)
    )
    if difference > probe.TOLERANCE:
        raise ModelError(f"{name}: answers otherwise by {difference:.1e} once adapted; report this model")


def _describe(
    model: onnx.ModelProto, labels: tuple[str, ...], mean: Sequence[float], scale: Sequence[float], softmax: bool
) -> None:
    own = {entry.key: entry.value for entry in model.metadata_props}
    adapted = {"mean": list(mean), "scale": list(scale), "scores": "logits" if softmax else "probabilities"}
    own |= {"classes": json.dumps(labels, ensure_ascii=False), "adapted": json.dumps(adapted)}
    onnx.helper.set_model_props(model, own)


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


def per_channel(text: str) -> tuple[float, ...]:
    """Three numbers with commas between them, or one for all channels."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers with commas between them") from error
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers with commas between them")
    return values if len(values) == 3 else values * 3


def divisor(text: str) -> tuple[float, ...]:
    """As `per_channel`, and none of them 0."""
    values = per_channel(text)
    if 0 in values:
        raise argparse.ArgumentTypeError(f"{text!r}: pixels cannot be divided by 0")
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What says how a classifier is to be taken."""
    parser.add_argument("--labels", type=Path, help="class names, one a line")
    parser.add_argument("--mean", type=per_channel, default=NO_MEAN, metavar="R,G,B")
    parser.add_argument("--scale", type=divisor, default=NO_SCALE, metavar="R,G,B")
    parser.add_argument("--size", type=int, help="height and width, where the model takes any")
    kind = parser.add_mutually_exclusive_group()
    for scores in ("logits", "probabilities"):
        kind.add_argument(f"--{scores}", dest="scores", action="store_const", const=scores, default="detect")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.export.adapt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if not options.labels:
        parser.error("--labels is needed: class names, one a line")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return finish("adapt", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    labels = read_labels(options.labels)
    model = onnx_file.read(options.onnx)
    adapted = adapt(
        model, labels, options.mean, options.scale, name=options.onnx, scores=options.scores, size=options.size
    )
    onnx_file.write_together({options.output: adapted.model.SerializeToString(deterministic=True)})
    size, batch = adapted.size, "N" if adapted.max_batch_size > 1 else "1"
    print(f"{options.output}: images UINT8 [{batch}, {size}, {size}, 3] -> probabilities FP32 [{batch}, {len(labels)}]")
    if adapted.note:
        print(adapted.note)


if __name__ == "__main__":
    sys.exit(main())
