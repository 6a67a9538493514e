"""Checkpoints: the weights with all that is needed to use them, written in one piece."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from training import files
from training.errors import CheckpointError
from training.model import AlexNet, NetworkConfig


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what belongs to it.

    `mean` and `std` are per RGB channel, in pixel values 0 to 255.
    """

    network: NetworkConfig
    weights: dict[str, torch.Tensor]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    recipe: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)  # images trained on, held out and tested on
    metrics: dict[str, Any] = field(default_factory=dict)

    def build(self) -> AlexNet:
        """The network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights are those of another network.
        """
        network = AlexNet(self.network)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"these weights are not of network {self.network.name}: {reason}") from error
        return network.eval()

    def describe(self) -> dict[str, Any]:
        """Everything but the weights."""
        return asdict(replace(self, weights={}))


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, and what describes it as JSON beside it; a reader never sees half of either."""
    files.write_tensors(path, {**checkpoint.describe(), "weights": checkpoint.weights})
    description = {key: value for key, value in checkpoint.describe().items() if key != "weights"}
    files.write_text(path.with_suffix(".json"), json.dumps(description, indent=2) + "\n")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged, or it is none of this project's.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train one: python -m training.train")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        values["network"] = NetworkConfig(**values["network"])
        return Checkpoint(**values)
    except Exception as error:  # whatever a damaged archive makes torch raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged or not a checkpoint of this project: {reason}") from error
