"""The networks: AlexNet of the 2012 paper, and the one-column network whose ImageNet weights are published."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = {"alexnet": 227, "alexnet_owt": 224}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
GAINS = {"relu": math.sqrt(2), "tanh": 5 / 3}  # keep the variance of a deep network's signals


class LocalResponseNorm(nn.Module):
    """Local response normalisation: `x / (k + alpha * sum of x**2 over `size` neighbouring channels) ** 0.75`.

    Krizhevsky et al. 2012, section 3.3, with the paper's sum. PyTorch and ONNX average, so their `alpha` is `size`
    times this one. The sum over channels is a 1x1 convolution of the squares with a banded matrix, and square roots
    make the power 3/4. On a CPU this takes a fraction of the time of PyTorch's own module.

    Shapes: float [N, channels, H, W] to the same.
    """

    band: Tensor
    offset: Tensor

    def __init__(self, channels: int, size: int = 5, alpha: float = 1e-4, k: float = 2.0):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, 0.75, k
        distance = torch.arange(channels)[:, None] - torch.arange(channels)
        band = (distance.abs() <= size // 2).float() * alpha
        self.register_buffer("band", band[:, :, None, None], persistent=False)
        self.register_buffer("offset", torch.full((channels,), k), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _LrnFunction.apply(x, self.band.to(x.dtype), self.offset.to(x.dtype))


class _LrnFunction(torch.autograd.Function):
    """With d = k + band @ x**2: y = x * d**-3/4, dx = dy * d**-3/4 - 3/2 * x * band @ (dy * y * d**-1).

    A pass over the activations costs about as much as the convolution, so there are as few passes as possible.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, offset: Tensor) -> Tensor:
        inverse = F.conv2d(x * x, band, offset).rsqrt_()  # d**-1/2
        scale = inverse.sqrt().mul_(inverse)  # d**-3/4
        if not ctx.needs_input_grad[0]:
            return scale.mul_(x)
        y = x * scale
        ctx.save_for_backward(x, y, inverse.square_(), scale, band)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, y, inverse, scale, band = ctx.saved_tensors
        through_sum = F.conv2d((grads[0] * y).mul_(inverse), band * -1.5)  # the band is symmetric
        return (grads[0] * scale).addcmul_(through_sum, x), None, None


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and which of the paper's ideas it has (sections 3 and 4.2)."""

    name: str = "alexnet"  # a key of INPUT_SIZE
    classes: int = 1000
    activation: str = "relu"  # a key of ACTIVATIONS
    dropout: float = 0.5
    lrn: bool = True  # local response normalisation
    overlap: bool = True  # pooling windows of 3 at a stride of 2, else windows of 2
    groups: int = 2  # of convolutions 2, 4 and 5
    width: float = 1.0  # times the published channels and hidden units

    @property
    def input_size(self) -> int:
        """Height and width of the input, in pixels."""
        return INPUT_SIZE[self.name]

    def units(self, published: int) -> int:
        """Channels or hidden units at this width, a multiple of 8."""
        return max(round(published * self.width / 8), 1) * 8


class AlexNet(nn.Module):
    """Normalised pixels, float [N, 3, S, S], to logits, float [N, classes]; S is `config.input_size`."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.features = nn.Sequential(*_features(config))
        self.classifier = nn.Sequential(*_classifier(config))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))

    def last_hidden(self, x: Tensor) -> Tensor:
        """The activations of the last hidden layer, float [N, units]; 4,096 units at the published width.

        Krizhevsky et al. 2012, section 6.1, compares images by them.
        """
        return self.classifier[:-1](self.features(x).flatten(1))


def _features(config: NetworkConfig) -> list[nn.Module]:
    """[N, 3, S, S] to [N, 256, 6, 6], at the published width.

    `alexnet` is Krizhevsky et al. 2012, section 3.5. `alexnet_owt` is Krizhevsky 2014, arXiv:1404.5997, with
    torchvision's layers: it has neither LRN nor groups, whatever the config says.
    """
    paper, activation = config.name == "alexnet", ACTIVATIONS[config.activation]
    published = (96, 256, 384, 384, 256) if paper else (64, 192, 384, 256, 256)
    c1, c2, c3, c4, c5 = map(config.units, published)
    groups = config.groups if paper else 1

    def lrn(channels: int) -> list[nn.Module]:
        return [LocalResponseNorm(channels) if config.lrn else nn.Identity()] if paper else []

    return [
        *(nn.Conv2d(3, c1, 11, stride=4, padding=0 if paper else 2), activation(), *lrn(c1), _pool(config)),  # 27 x 27
        *(nn.Conv2d(c1, c2, 5, padding=2, groups=groups), activation(), *lrn(c2), _pool(config)),  # 13 x 13
        *(nn.Conv2d(c2, c3, 3, padding=1), activation()),
        *(nn.Conv2d(c3, c4, 3, padding=1, groups=groups), activation()),
        *(nn.Conv2d(c4, c5, 3, padding=1, groups=groups), activation(), _pool(config)),  # 6 x 6
    ]


def _pool(config: NetworkConfig) -> nn.Module:
    # Windows of 2 at a stride of 2 leave the same 27, 13 and 6 pixels as overlapping windows of 3.
    return nn.MaxPool2d(3 if config.overlap else 2, stride=2)


def _classifier(config: NetworkConfig) -> list[nn.Module]:
    activation = ACTIVATIONS[config.activation]
    features, hidden = config.units(256) * 6 * 6, config.units(4096)
    return [
        *(nn.Dropout(config.dropout), nn.Linear(features, hidden), activation()),
        *(nn.Dropout(config.dropout), nn.Linear(hidden, hidden), activation()),
        nn.Linear(hidden, config.classes),
    ]


def initialize(network: AlexNet, scheme: str) -> None:
    """Set all weights, in place.

    Args:
        scheme: `paper`, section 5: Gaussians of deviation 0.01; biases 1 in convolutions 2, 4, 5 and the hidden
            fully-connected layers, 0 elsewhere. Or `he`, He et al. 2015: variance 2 / fan-in (25 / 9 / fan-in for
            tanh); biases 0.
    """
    layers: list[Any] = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers, start=1):
        if scheme == "he":
            nn.init.normal_(layer.weight, std=GAINS[network.config.activation] / math.sqrt(layer.weight[0].numel()))
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
        # Cast before the transposition: TensorRT cannot transpose uint8.
        if torch.compiler.is_exporting():
            return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        # The same in a third of the time on a processor, by rows of pixels instead of three values at a time.
        width = images.shape[2]
        rows = images.flatten(2).to(torch.float32, copy=True).sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.view(images.shape).permute(0, 3, 1, 2)
