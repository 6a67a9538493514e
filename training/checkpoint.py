"""Checkpoints: a network's weights with all that is needed to use them, and the state of an unfinished run."""

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
    split: dict[str, Any] = field(default_factory=dict)  # numbers of training, held-out and test images
    metrics: dict[str, Any] = field(default_factory=dict)
    taken_over: dict[str, Any] = field(default_factory=dict)  # the trained network that the run started from

    def build(self) -> AlexNet:
        """The network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights belong to another network.
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
        return {key: value for key, value in asdict(replace(self, weights={})).items() if key != "weights"}


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, and its description as JSON beside it. A reader never sees half of either.

    Raises:
        WriteError: one of them cannot be written.
    """
    _write_tensors(path, {**checkpoint.describe(), "weights": checkpoint.weights})
    files.write_json(path.with_suffix(".json"), checkpoint.describe())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or this project did not write it.
    """
    absent = f"no such checkpoint; train one with alexnet-triton train --output {path}"
    otherwise, remedy = "not a checkpoint of this project", "train it again"
    values = read_tensors(path, absent, otherwise, remedy)
    try:
        network = values.pop("network")
        network.setdefault("lrn", network.pop("normalization", True))  # its name in older checkpoints
        return Checkpoint(NetworkConfig(**network), **values)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged or {otherwise} ({error}); {remedy}") from error


def save_state(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the state of an unfinished run in one step. A run that resumes from it must have the same `identity`.

    Raises:
        WriteError: it cannot be written.
    """
    _write_tensors(path, {"identity": identity, **state})


def load_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a state back.

    Raises:
        CheckpointError: there is none, it is damaged, or its run had another identity.
    """
    absent, otherwise = "no unfinished run to resume; start one without --resume", "not the state of a run"
    remedy = "remove it and start without --resume"
    state = read_tensors(path, absent, otherwise, remedy)
    if not isinstance(state.get("identity"), dict):
        raise CheckpointError(f"{path}: damaged or {otherwise}; {remedy}")
    for key, ours in identity.items():
        theirs = state["identity"].get(key)
        if theirs != ours:
            same = "give the same, or start without --resume"
            raise CheckpointError(f"{path}: a run with {key} {theirs!r}, not {ours!r}; {same}")
    return state


def read_tensors(path: Path, absent: str, otherwise: str, remedy: str) -> dict[str, Any]:
    """The dictionary that torch.save wrote to a file, on the CPU. Unpickles tensors and plain values, and no code.

    Raises:
        CheckpointError: there is no file (`absent`), or it is damaged or `otherwise`; the message ends in the `remedy`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {absent}")
    try:
        return {**torch.load(path, map_location="cpu", weights_only=True)}
    except Exception as error:  # a damaged archive makes torch raise errors of many kinds
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or {otherwise} ({reason}); {remedy}") from error


def _write_tensors(path: Path, values: dict[str, Any]) -> None:
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the system's reason, which torch covers with its own
                raise error.__context__ from None
            raise


def require_space(folder: Path, needed: int) -> None:
    """Refuse at the start what would fail after hours of training.

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
