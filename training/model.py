"""The networks: AlexNet of the 2012 paper, and the one-column variant whose ImageNet weights are published."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.lrn import LocalResponseNorm

INPUT_SIZE = {"alexnet": 227, "alexnet_owt": 224}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and which of the paper's ideas are in it (section 3 and 4.2)."""

    name: str = "alexnet"  # a key of INPUT_SIZE
    classes: int = 1000
    activation: str = "relu"  # a key of ACTIVATIONS
    dropout: float = 0.5
    normalization: bool = True
    overlap: bool = True  # pooling windows of 3 at a stride of 2, else of 2
    groups: int = 2  # of convolutions 2, 4 and 5

    @property
    def input_size(self) -> int:
        """Height and width of the input, in pixels."""
        return INPUT_SIZE[self.name]


class AlexNet(nn.Module):
    """Normalised pixels, float [N, 3, S, S], to logits, float [N, classes]; S is `config.input_size`."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        layers = _paper_features(config) if config.name == "alexnet" else _one_column_features(config)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(*_classifier(config))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _paper_features(config: NetworkConfig) -> list[nn.Module]:
    """Krizhevsky et al. 2012, section 3.5: [N, 3, 227, 227] to [N, 256, 6, 6]."""

    def activation() -> nn.Module:
        return ACTIVATIONS[config.activation]()

    def normalization(channels: int) -> nn.Module:
        return LocalResponseNorm(channels) if config.normalization else nn.Identity()

    def pool() -> nn.Module:
        # Windows of 2 at a stride of 2 leave the same 27, 13 and 6 pixels.
        return nn.MaxPool2d(3 if config.overlap else 2, stride=2)

    groups = config.groups
    return [
        *(nn.Conv2d(3, 96, 11, stride=4), activation(), normalization(96), pool()),  # 27 x 27
        *(nn.Conv2d(96, 256, 5, padding=2, groups=groups), activation(), normalization(256), pool()),  # 13 x 13
        *(nn.Conv2d(256, 384, 3, padding=1), activation()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=groups), activation()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=groups), activation(), pool()),  # 6 x 6
    ]


def _one_column_features(config: NetworkConfig) -> list[nn.Module]:
    """Krizhevsky 2014, arXiv:1404.5997, as torchvision lays it out: [N, 3, 224, 224] to [N, 256, 6, 6]."""
    activation = ACTIVATIONS[config.activation]
    return [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), activation(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), activation(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), activation()),
        *(nn.Conv2d(384, 256, 3, padding=1), activation()),
        *(nn.Conv2d(256, 256, 3, padding=1), activation(), nn.MaxPool2d(3, 2)),
    ]


def _classifier(config: NetworkConfig) -> list[nn.Module]:
    activation = ACTIVATIONS[config.activation]
    return [
        *(nn.Dropout(config.dropout), nn.Linear(256 * 6 * 6, 4096), activation()),
        *(nn.Dropout(config.dropout), nn.Linear(4096, 4096), activation()),
        nn.Linear(4096, config.classes),
    ]


def initialize(network: AlexNet, scheme: str) -> None:
    """Set all weights, in place.

    `paper`: section 5, Gaussians of deviation 0.01; biases 1 in convolutions 2, 4, 5 and the hidden
    fully-connected layers, 0 elsewhere. `he`: He et al. 2015, variance 2 / fan-in, biases 0.
    """
    layers: list[Any] = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers, start=1):
        if scheme == "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        else:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 1.0 if number in (2, 4, 5, 6, 7) else 0.0)
    if scheme == "he":  # small first logits: the loss starts at log(classes)
        nn.init.normal_(layers[-1].weight, std=0.01)


class Normalize(nn.Module):
    """uint8 pixels [N, S, S, 3] to normalised float [N, 3, S, S], in channels-last memory order."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        # Cast before the transposition: TensorRT transposes no uint8.
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)
