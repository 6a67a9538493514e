"""Published ImageNet weights to a checkpoint: python -m training.torchvision_weights alexnet.pth --labels labels.txt.

torchvision's AlexNet is the one-column network of Krizhevsky 2014 (arXiv:1404.5997), here `alexnet_owt`;
its state_dict has the same names.
"""

import argparse
import sys
from pathlib import Path

import torch

from training import checkpoint
from training.checkpoint import Checkpoint
from training.errors import CheckpointError, TrainingError
from training.model import NetworkConfig

# What torchvision normalises with, in pixel values 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


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
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no readable list of labels ({error}); give one class a line") from error


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.torchvision_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="state_dict of torchvision's alexnet")
    parser.add_argument("--labels", type=Path, required=True, help="class names, one a line")
    parser.add_argument("--output", type=Path, default=Path("artifacts/alexnet_owt.pt"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        converted = convert(options.weights, options.labels)
        checkpoint.save(converted, options.output)
    except (TrainingError, OSError) as error:
        print(f"weights: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: alexnet_owt, {len(converted.classes):,} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
