"""A narrow network with random weights, and pictures: all stages of an export in seconds."""

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


def sort_by_answer(folder: Path) -> None:
    """Move the pictures of `folder` to the classes that the random network finds most probable."""
    run = Classifier.of(random_checkpoint()).run
    for picture in sorted(folder.glob("*/*")):
        target = folder / CLASSES[int(run(np.stack([decode(picture.read_bytes(), 227)])).argmax())]
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
