"""The command `alexnet-triton imagenet-weights`: published ImageNet weights to a checkpoint.

torchvision's AlexNet is the one-column network of Krizhevsky 2014 (arXiv:1404.5997), here `alexnet_owt`. Its
state_dict has the same names.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from alexnet_triton.common.command import Parser, finish
from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.download import Published, fetch
from alexnet_triton.training.errors import CheckpointError
from alexnet_triton.training.model import NetworkConfig

PROG = "alexnet-triton imagenet-weights"
# torchvision's normalisation, in pixel values 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
WEIGHTS = Published(
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244_408_911,
)
LABELS = Published(
    "https://raw.githubusercontent.com/pytorch/hub/a6fc887fbbbda0dd37c440bf8a145f1da6707d6b/imagenet_classes.txt",
    "1f386e0d1cb6e28b9c2dac651c3dea6801e98ad1b41a14ce6bb1a093d72069f5",
    10_472,
)
FETCHED = Path("artifacts/weights")


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    return finish(PROG, lambda: _run(options))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROG,
        description="Make a checkpoint of published ImageNet weights (--weights imagenet: fetched and checked, with "
        "their 1,000 labels), or of a state_dict and labels of your own.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("weights", type=Path, nargs="?", help="state_dict of torchvision's alexnet; needs --labels")
    source.add_argument("--weights", dest="published", choices=("imagenet",), help="fetch the published weights")
    parser.add_argument("--labels", type=Path, help="class names, one a line; published weights bring theirs")
    parser.add_argument("--fetched", type=Path, default=FETCHED, help=f"folder for downloads (default {FETCHED})")
    parser.add_argument("--output", type=Path, default=Path("artifacts/alexnet_owt.pt"))
    options = parser.parse_args(words)
    if options.weights and not options.labels:
        parser.error("a state_dict of your own needs --labels")
    return options


def _run(options: argparse.Namespace) -> None:
    converted = read(options.weights, options.labels, options.fetched)
    checkpoint.save(converted, options.output)
    print(f"{options.output}: alexnet_owt, {len(converted.classes):,} classes")


def read(weights: Path | None, labels: Path | None, fetched: Path = FETCHED) -> Checkpoint:
    """A state_dict and labels, the published ones where they are None: those are fetched once into `fetched`.

    Raises:
        DataError: a published file cannot be fetched, or is not the published one.
        CheckpointError: as `convert`.
    """
    return convert(weights or fetch(WEIGHTS, fetched), labels or fetch(LABELS, fetched))


def convert(weights: Path, labels: Path) -> Checkpoint:
    """A state_dict in torchvision's layout, and class names one a line, as a checkpoint.

    Raises:
        CheckpointError: a file cannot be read, the weights are another network's, or the labels do not fit.
    """
    absent, remedy = "no such file; save the state_dict of torchvision's alexnet there", "save model.state_dict() alone"
    state = checkpoint.read_tensors(weights, absent, "no state_dict", remedy)
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{weights}: no state_dict; {remedy}")
    names = _read_labels(labels)
    classes = len(state["classifier.6.bias"]) if "classifier.6.bias" in state else 0
    if classes and classes != len(names):
        raise CheckpointError(f"{labels}: {len(names)} labels for the {classes} classes of {weights}; give one a class")
    converted = Checkpoint(
        NetworkConfig("alexnet_owt", len(names)), state, names, MEAN, STD, "imagenet", {"source": weights.name}
    )
    converted.build()
    return converted


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        return unique(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no readable list of labels ({error}); give one class a line") from error


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with their numbers after equal ones (ImageNet has two cranes)."""
    return tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))
