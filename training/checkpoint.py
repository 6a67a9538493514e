"""Checkpoints: the weights with all that is needed to use them, written in one piece."""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alexnet_triton.common import files
from alexnet_triton.training.errors import CheckpointError
from alexnet_triton.training.model import AlexNet, NetworkConfig


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


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    """Replace a file of tensors in one step.

    Raises:
        WriteError: it cannot be written, for want of space or otherwise.
    """
    with files.replacing(path) as temporary:
        try:
            torch.save(values, temporary)
        except RuntimeError as error:  # what torch.save says where a disk is full
            raise OSError(str(error).splitlines()[0]) from error


def require_space(folder: Path, needed: int) -> None:
    """Refuse early what would fail after hours.

    Raises:
        CheckpointError: fewer than `needed` bytes are free where `folder` is or will be.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: {free / 2**20:,.0f} MiB free, {needed / 2**20:,.0f} MiB needed for checkpoints; "
            "free space or give another --output"
        )


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, and what describes it as JSON beside it; a reader never sees half of either."""
    write_tensors(path, {**checkpoint.describe(), "weights": checkpoint.weights})
    description = {key: value for key, value in checkpoint.describe().items() if key != "weights"}
    files.write_text(path.with_suffix(".json"), json.dumps(description, indent=2) + "\n")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged, or it is none of this project's.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train one: python -m alexnet_triton.training.train")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        values["network"] = NetworkConfig(**values["network"])
        return Checkpoint(**values)
    except Exception as error:  # whatever a damaged archive makes torch raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged or not a checkpoint of this project: {reason}") from error


# WAS alexnet_triton.training.checkpoint: The state of an unfinished run on disk.


def save_state(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state in one piece; `identity` is what the run that takes it up must be the same in."""
    write_tensors(path, {"identity": identity, **state})


def load_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a state back.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of a run with another identity.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no unfinished run there to take up; start one without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["identity"]
    except Exception as error:  # whatever a damaged archive makes torch raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged ({reason}); remove it and start without --resume") from error
    for key, ours in identity.items():
        if theirs.get(key) != ours:
            raise CheckpointError(
                f"{path}: a run with {key} {theirs.get(key)!r}, not {ours!r}; give the same, or start without --resume"
            )
    return state
