"""The networks are the published ones, and the fast response normalisation equals PyTorch's slow one."""

import pytest
import torch
import torch.nn.functional as F

from alexnet_triton.training.model import AlexNet, LocalResponseNorm, NetworkConfig, Normalize, initialize

# Krizhevsky et al. 2012, section 3.5, weights and biases: the figures of the layers add up to 60,965,224.
PAPER_LAYERS = {
    "features.0": 96 * 3 * 11 * 11 + 96,
    "features.4": 256 * 48 * 5 * 5 + 256,
    "features.8": 384 * 256 * 3 * 3 + 384,
    "features.10": 384 * 192 * 3 * 3 + 384,
    "features.12": 256 * 192 * 3 * 3 + 256,
    "classifier.1": 4096 * 9216 + 4096,
    "classifier.4": 4096 * 4096 + 4096,
    "classifier.6": 1000 * 4096 + 1000,
}


def parameters_by_layer(network: AlexNet) -> dict[str, int]:
    layers: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        layer = name.rsplit(".", 1)[0]
        layers[layer] = layers.get(layer, 0) + parameter.numel()
    return layers


def test_alexnet_has_the_papers_parameters_layer_by_layer() -> None:
    layers = parameters_by_layer(AlexNet(NetworkConfig("alexnet")))
    assert layers == PAPER_LAYERS
    assert sum(layers.values()) == 60_965_224


def test_one_column_network_has_torchvisions_names_and_parameters() -> None:
    network = AlexNet(NetworkConfig("alexnet_owt"))
    names = {name.rsplit(".", 1)[0] for name in network.state_dict()}
    assert names == {f"features.{i}" for i in (0, 3, 6, 8, 10)} | {f"classifier.{i}" for i in (1, 4, 6)}
    assert sum(parameters_by_layer(network).values()) == 61_100_840


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt"])
@pytest.mark.parametrize("overlap", [True, False])
def test_images_become_logits(name: str, overlap: bool) -> None:
    network = AlexNet(NetworkConfig(name, classes=7, overlap=overlap, lrn=False))
    size = network.config.input_size
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt"])
def test_the_last_layer_makes_logits_of_the_last_hidden_one(name: str) -> None:
    torch.manual_seed(0)
    network = AlexNet(NetworkConfig(name, classes=7, width=1 / 16)).eval()
    pixels = torch.randn(2, 3, network.config.input_size, network.config.input_size)
    hidden = network.last_hidden(pixels)
    assert hidden.shape == (2, network.config.units(4096))
    assert hidden.min() >= 0, "after the activation"
    torch.testing.assert_close(network.classifier[-1](hidden), network(pixels))


def test_lrn_is_the_papers() -> None:
    """Against PyTorch's own module, which divides alpha by the size, forwards and backwards."""
    torch.manual_seed(0)
    x = torch.randn(2, 96, 5, 5, dtype=torch.float64) * 30
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = LocalResponseNorm(96).double()(ours)
    expected = F.local_response_norm(theirs, size=5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(LocalResponseNorm(96).double()(x), expected)  # without gradients it saves some passes
    weight = torch.randn_like(x)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_normalize_subtracts_the_mean_of_each_channel() -> None:
    images = torch.tensor([[[[10, 20, 30], [11, 22, 34]], [[12, 24, 38], [13, 26, 42]]]], dtype=torch.uint8)
    pixels = Normalize((10.0, 10.0, 10.0), (1.0, 2.0, 4.0))(images)
    assert pixels[0].tolist() == [[[0.0, 1.0], [2.0, 3.0]], [[5.0, 6.0], [7.0, 8.0]], [[5.0, 6.0], [7.0, 8.0]]]
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_paper_initialisation() -> None:
    network = AlexNet(NetworkConfig("alexnet", classes=10))
    initialize(network, "paper")
    biases = [p.flatten()[0].item() for name, p in network.named_parameters() if name.endswith("bias")]
    assert biases == [0, 1, 0, 1, 1, 1, 1, 0]
    assert network.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.02)
