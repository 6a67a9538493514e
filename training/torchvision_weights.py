"""Published ImageNet weights to a checkpoint: python -m alexnet_triton.training.torchvision_weights --weights imagenet.

torchvision's AlexNet is the one-column network of Krizhevsky 2014 (arXiv:1404.5997), here `alexnet_owt`;
its state_dict has the same names. `imagenet` fetches it from its own address, with the 1,000 labels, and checks
both; a file of your own needs a file of labels: alexnet.pth --labels labels.txt.
"""

import argparse
import sys
from pathlib import Path

import torch

from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.download import Published, fetch
from alexnet_triton.training.errors import CheckpointError, TrainingError
from alexnet_triton.training.model import NetworkConfig

# What torchvision normalises with, in pixel values 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
IMAGENET = "imagenet"
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


def convert(weights: Path, labels: Path) -> Checkpoint:
    """A state_dict in torchvision's layout, and class names one a line, as a checkpoint.

    Raises:
        CheckpointError: a file cannot be read, the weights are another network's, or the labels do not fit.
    """
    state = _read_state(weights)
    names = _read_labels(labels)
    classes = len(state["classifier.6.bias"]) if "classifier.6.bias" in state else 0
    if classes and classes != len(names):
        raise CheckpointError(f"{labels}: {len(names)} labels for the {classes} classes of {weights}; give one a class")
    converted = Checkpoint(
        NetworkConfig("alexnet_owt", len(names)), state, names, MEAN, STD, "imagenet", {"source": weights.name}
    )
    converted.build()
    return converted


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; save torchvision's alexnet state_dict there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise CheckpointError(f"{path}: damaged or no state_dict: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: no state_dict; save model.state_dict(), not the model")
    return state


def _read_labels(path: Path) -> tuple[str, ...]:
    """One a line; where two are alike (ImageNet has two cranes), each gets its number."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
        return tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no readable list of labels ({error}); give one class a line") from error


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.training.torchvision_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("weights", type=Path, nargs="?", help="state_dict of torchvision's alexnet")
    source.add_argument("--weights", dest="published", choices=(IMAGENET,), help="fetch the published ones")
    parser.add_argument("--labels", type=Path, help="class names, one a line; published weights bring theirs")
    parser.add_argument("--fetched", type=Path, default=FETCHED, help=f"folder for what is fetched (default {FETCHED})")
    parser.add_argument("--output", type=Path, default=Path("artifacts/alexnet_owt.pt"))
    options = parser.parse_args(arguments)
    if options.weights and not options.labels:
        parser.error("a state_dict of your own needs --labels")
    return options


def locate(options: argparse.Namespace) -> tuple[Path, Path]:
    """The files of weights and labels, fetched where the published ones are asked for.

    Raises:
        DataError: they cannot be had.
    """
    if not options.published:
        return options.weights, options.labels
    return fetch(WEIGHTS, options.fetched), options.labels or fetch(LABELS, options.fetched)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        converted = convert(*locate(options))
        checkpoint.save(converted, options.output)
    except (TrainingError, OSError) as error:
        print(f"weights: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: alexnet_owt, {len(converted.classes):,} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
