"""The README's ResNet-50: exported as torchvision's is, published by the command as written, served and asked."""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_triton.export.adapt import PRESETS
from alexnet_triton.imaging import decode
from commands import classify, lines
from main_job import ROOT
from tests.serving.tiny import running_server

BIN = Path(sys.executable).parent
LABELS = [f"class {number:03}" for number in range(1000)]
BLOCKS, WIDTH = (3, 4, 6, 3), 8  # ResNet-50's blocks, an eighth of its channels


class Bottleneck(nn.Module):
    """He et al., Deep Residual Learning for Image Recognition, figure 5, right."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        sizes = ((channels, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1))
        self.steps = nn.ModuleList(convolution(*size) for size in sizes)
        same = stride == 1 and channels == 4 * inner
        self.shortcut = nn.Identity() if same else convolution(channels, 4 * inner, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.steps[1](self.steps[0](x).relu()).relu()
        return (self.steps[2](y) + self.shortcut(x)).relu()


def convolution(channels: int, out: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out))


def resnet() -> nn.Module:
    """float [N, 3, 224, 224] to logits [N, 1000]; random weights, and statistics of random images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [convolution(3, WIDTH, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = WIDTH
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            inner = WIDTH * 2**stage
            layers.append(Bottleneck(channels, inner, 2 if stage and not block else 1))
            channels = 4 * inner
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    with torch.no_grad():
        network(torch.randn(16, 3, 224, 224))
        network[-1].weight *= 8  # answers that are not all alike
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return resnet()


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    example, names = torch.zeros(1, 3, 224, 224), {"input_names": ["input"], "output_names": ["output"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this exporter's age; most people's files come from it
        torch.onnx.export(network, (example,), folder / "resnet50.onnx", dynamo=False, opset_version=17, **names)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    random = np.random.default_rng(0)
    (folder / "photos" / "test").mkdir(parents=True)
    for number in range(64):
        blotches = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
        blotches.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"photos/test/{number}.jpg", quality=95)
    return folder


def readme_command() -> list[str]:
    """`alexnet-triton export resnet50.onnx ...` as it stands in the README."""
    (line,) = re.findall(r"^ *(alexnet-triton export resnet50.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return shlex.split(line)


def test_published_served_and_asked(network: nn.Module, folder: Path) -> None:
    words = readme_command()
    done = subprocess.run([BIN / words[0], *words[1:], "--rounds", "1"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("version 1 in artifacts/model_repository\n")  # the fixed batch of 1 was made free
    images = sorted(folder.glob("photos/test/*.jpg"))[:4]
    with running_server(folder / "artifacts/model_repository") as server:
        asked = classify(*images, "--url", f"grpc://{server.grpc_address}", "--format", "json", "--top", 5)
        text = classify("info", "--url", f"grpc://{server.grpc_address}").stdout.decode()
    assert (asked.returncode, asked.stderr) == (0, b"")
    assert "resnet50 1 READY" in text
    mean, deviation = (np.array(each, np.float32) for each in PRESETS["torchvision"])
    for image, line in zip(images, lines(asked.stdout), strict=True):
        pixels = (decode(image.read_bytes(), 224) - mean) / deviation
        with torch.no_grad():
            logits = network(torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32)))
        expected = torch.softmax(logits, dim=1)[0].numpy()
        assert line["top"][0]["label"] == LABELS[expected.argmax()]
        assert [entry["probability"] for entry in line["top"]] == pytest.approx(np.sort(expected)[:-6:-1], abs=0.02)
