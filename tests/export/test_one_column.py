"""torchvision's layout of weights goes all the way: checkpoint, ONNX, repository, 1,000 labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_triton.export import publish, to_onnx
from alexnet_triton.export.onnx_file import image_input
from alexnet_triton.export.repository import read_network
from alexnet_triton.training import torchvision_weights
from alexnet_triton.training.model import AlexNet, NetworkConfig
from tests.serving.tiny import running_server

LABELS = [f"class {number:03}" for number in range(1000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict with torchvision's names and random values, 1,000 labels, and pictures of two classes."""
    folder = tmp_path_factory.mktemp("one_column")
    torch.manual_seed(0)
    torch.save(AlexNet(NetworkConfig("alexnet_owt")).state_dict(), folder / "alexnet.pth")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    rng = np.random.default_rng(0)
    for number, name in enumerate((LABELS[0], LABELS[999])):
        (folder / "images" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (240, 320, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    return folder


def test_from_published_weights_to_a_served_model(folder: Path) -> None:
    weights, labels, images = (str(folder / name) for name in ("alexnet.pth", "labels.txt", "images"))
    network, model, repository = (str(folder / name) for name in ("network.pt", "model.onnx", "built"))
    assert torchvision_weights.main([weights, "--labels", labels, "--output", network]) == 0
    assert to_onnx.main([network, model, "--images", images]) == 0
    assert publish.main([model, "--images", images, "--repository", repository]) == 0
    served = read_network(folder / "built", 1)
    assert (served.classes, served.size, served.preprocess) == (1000, 224, "preprocess_224")
    assert (folder / "built" / "classify" / "labels.1.txt").read_text().splitlines() == LABELS
    with running_server(repository) as server:
        server.check()
        _, probabilities = server.control.classify(next((folder / "images").glob("*/*")).read_bytes())
    assert len(probabilities) == 1000
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert image_input(publish.onnx_file.read(folder / "model.onnx"), "model").name == "images"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("absent", "no such file"),
        ("text", "damaged or no state_dict"),
        ("labels", "2 labels for the 1000 classes"),
        ("network", "not of network alexnet_owt"),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path, tmp_path: Path, change: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, labels = tmp_path / "weights.pth", folder / "labels.txt"
    if change == "text":
        weights.write_text("no weights")
    elif change == "labels":
        weights, labels = folder / "alexnet.pth", tmp_path / "labels.txt"
        labels.write_text("cat\ndog\n")
    elif change == "network":
        torch.save({"classifier.6.bias": torch.zeros(1000)}, weights)
    output = tmp_path / "out.pt"
    assert torchvision_weights.main([str(weights), "--labels", str(labels), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert not output.exists()
