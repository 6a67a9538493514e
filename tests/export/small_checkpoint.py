"""A narrow network with random weights, and pictures: all stages of an export in seconds."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet_triton.export.to_onnx import Classifier
from alexnet_triton.imaging import decode
from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.model import AlexNet, NetworkConfig, initialize

CLASSES = ("bird", "cat", "dog", "fox", "owl", "pig")


def random_checkpoint(name: str = "alexnet") -> Checkpoint:
    torch.manual_seed(0)
    network = AlexNet(NetworkConfig(name, classes=len(CLASSES), width=1 / 16))
    initialize(network, "he")
    return Checkpoint(
        network.config, network.state_dict(), CLASSES, (120.0, 115.0, 100.0), (60.0, 60.0, 60.0), "random"
    )


def write_checkpoint(path: Path) -> Path:
    checkpoint.save(random_checkpoint(), path)
    return path


def write_onnx(path: Path) -> list[str]:
    """The second network as somebody else's ONNX file; returns the options that `export` needs with it.

    Half a second: the exporter of a checkpoint takes ten in a new process, and needs PyTorch.
    """
    source = random_checkpoint("alexnet_owt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this exporter's age
        torch.onnx.export(source.build().eval(), (torch.zeros(1, 3, 224, 224),), path, dynamo=False)
    labels = path.with_suffix(".txt")
    labels.write_text("\n".join(CLASSES))
    mean, std = (",".join(map(str, each)) for each in (source.mean, source.std))
    return ["--labels", str(labels), "--mean", mean, "--std", std]


def sort_by_answer(folder: Path, name: str) -> None:
    """Move the pictures of `folder` to the classes that the random network finds most probable."""
    source = random_checkpoint(name)
    run = Classifier.of(source).run
    for picture in sorted(folder.glob("*/*")):
        pixels = decode(picture.read_bytes(), source.network.input_size)
        target = folder / CLASSES[int(run(np.stack([pixels])).argmax())]
        target.mkdir(exist_ok=True)
        picture.replace(target / picture.name)


def write_pictures(folder: Path, count: int) -> Path:
    """JPEG files in <class>/ folders."""
    random = np.random.default_rng(count)
    for number in range(count):
        target = folder / CLASSES[number % len(CLASSES)]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(target / f"{number}.jpg")
    return folder
