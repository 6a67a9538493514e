"""Fine-tuning: a trained network is taken over, but for its last layer, which is new for the new classes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from alexnet_triton.common import files
from alexnet_triton.training import checkpoint, torchvision_weights
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import PixelStatistics
from alexnet_triton.training.device import Group
from alexnet_triton.training.download import fetch
from alexnet_triton.training.errors import CheckpointError
from alexnet_triton.training.model import AlexNet, NetworkConfig

PUBLISHED = "imagenet"  # the name of the published weights
LAST_LAYER = "classifier.6."  # how the names of its tensors begin


@dataclass(frozen=True)
class Initial:
    """A trained network to start from: `source` as the user named it, and the SHA-256 of its file."""

    source: str
    sha256: str
    trained: Checkpoint

    def network(self, classes: int, dropout: float) -> NetworkConfig:
        """The trained network's configuration, with other classes. Dropout is the recipe's: it has no weights."""
        return replace(self.trained.network, classes=classes, dropout=dropout)

    def normalize_as_before(self, pixels: PixelStatistics) -> PixelStatistics:
        """Statistics of the new images, with the mean and deviation that the network was trained with."""
        return replace(pixels, mean=self.trained.mean, std=self.trained.std)

    def hand_over(self, network: AlexNet) -> nn.Module:
        """Copy all weights but the last layer's into the network. Returns that layer, which stays as it is."""
        network.load_state_dict({**self.trained.weights, **self._new(network.state_dict())})
        return network.classifier[-1]

    @staticmethod
    def _new(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor for name, tensor in tensors.items() if name.startswith(LAST_LAYER)}

    def describe(self) -> dict[str, Any]:
        """Plain values for the new checkpoint."""
        weights = self.trained.weights
        return {
            "source": self.source,
            "sha256": self.sha256,
            "network": self.trained.network.name,
            "data": self.trained.data,
            "classes": len(self.trained.classes),
            "tensors": len(weights) - len(self._new(weights)),
        }

    def summary(self, classes: int) -> str:
        """What is taken over and what is new, in a line."""
        of = self.describe()
        return (
            f"taken over from {self.source} ({of['network']}, {of['classes']:,} classes of {of['data']}): "
            f"{of['tensors']} of {len(self.trained.weights)} tensors; new: the last layer, {classes:,} classes"
        )


def load_initial(source: str, group: Group) -> Initial:
    """Read the trained network that a run starts from. Every process of the group must call it.

    Args:
        source: the path of a checkpoint, or `imagenet` for AlexNet's published weights, fetched once.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or this project did not write it.
        DataError: the published weights cannot be fetched.
        WriteError: they cannot be written.
    """
    if source == PUBLISHED:
        return Initial(source, torchvision_weights.WEIGHTS.sha256, _published(group))
    path = Path(source)
    trained = checkpoint.load(path)
    try:
        trained.build()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Initial(source, files.sha256(path), trained)


def _published(group: Group) -> Checkpoint:
    folder = torchvision_weights.FETCHED
    if group.is_first:
        _fetch(folder)
    group.gather(None)  # the others wait for the first
    return torchvision_weights.convert(*_fetch(folder))


def _fetch(folder: Path) -> tuple[Path, Path]:
    return fetch(torchvision_weights.WEIGHTS, folder), fetch(torchvision_weights.LABELS, folder)
