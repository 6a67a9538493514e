"""The command `alexnet-triton figures`: the 2012 paper's figures 3 and 4 (right) from a checkpoint."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from alexnet_triton.common.command import Parser, finish, positive_int
from alexnet_triton.common.files import is_image
from alexnet_triton.imaging import center_box, open_image, resample
from alexnet_triton.training import checkpoint, device
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import FileSplit
from alexnet_triton.training.errors import DataError
from alexnet_triton.training.evaluate import BATCH
from alexnet_triton.training.loading import batches, center_crop, in_order
from alexnet_triton.training.log import new_figure, progress_bar
from alexnet_triton.training.model import AlexNet, Normalize

PROG = "alexnet-triton figures"
COLUMNS = 16  # of the grid of kernels; 96 kernels are six rows, as in the paper
NEAREST = 6  # images beside each query, as in the paper
SIDE = 96  # of a drawn image, in pixels


@dataclass(frozen=True)
class FoundImages:
    """Images that could be read, and the last hidden layer's activations for them, float32 [N, units]."""

    paths: list[Path]
    features: np.ndarray


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Draw the 2012 paper's figures 3 and 4 (right): kernels and nearest images.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="to take the queries from")
    parser.add_argument(
        "--among", type=Path, metavar="FOLDER", help="to search, such as training images; else --images"
    )
    parser.add_argument("--queries", type=positive_int, default=5, help="evenly spread over --images (default 5)")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for kernels.png and nearest.png")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    trained = checkpoint.load(options.checkpoint)
    queries = spread(find_files(options.images), options.queries)
    others = find_files(options.among or options.images)
    kernels, nearest = options.to / "kernels.png", options.to / "nearest.png"
    with progress_bar() as progress:
        asked = describe_images(trained, queries, progress, "queries")
        searched = describe_images(trained, others, progress, "images to search")
    draw_kernels(trained, kernels)
    draw_nearest(asked, searched, trained.network.input_size, nearest)
    print(
        f"{kernels}: the first layer's kernels; {nearest}: {len(asked.paths)} images and the nearest of {len(others):,}"
    )


def find_files(folder: Path) -> list[Path]:
    """The image files in a folder and its sub-folders, sorted.

    Raises:
        DataError: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if is_image(path))
    if not found:
        raise DataError(f"{folder}: no images in it; write some with alexnet-triton pictures --to {folder}")
    return found


def spread(paths: list[Path], count: int) -> list[Path]:
    """At most `count` of the paths, evenly spread over them."""
    count = min(count, len(paths))
    return [paths[(2 * number + 1) * len(paths) // (2 * count)] for number in range(count)]


def describe_images(trained: Checkpoint, paths: Sequence[Path], progress: Progress, what: str) -> FoundImages:
    """The last hidden layer's activations for the central crops of images; damaged ones are named and skipped.

    Raises:
        DataError: more than 1 % of the images are damaged.
        CheckpointError: the weights belong to another network.
    """
    target, network = device.pick_device(), trained.build()
    device.place(network, target)
    normalize = Normalize(trained.mean, trained.std).to(target)
    split = FileSplit(paths, np.arange(len(paths)))  # a label says which image it was
    task = progress.add_task(what, total=len(paths), note="")
    features, places = [], []
    for images, labels in batches(split, in_order(len(paths), BATCH), center_crop(trained.network.input_size)):
        if len(labels):  # else all of these are damaged
            features.append(_last_hidden(network, normalize, images.to(target)))
            places += labels.tolist()
            progress.advance(task, len(labels))
    return FoundImages([paths[place] for place in places], np.concatenate(features))


def _last_hidden(network: AlexNet, normalize: Normalize, images: Tensor) -> np.ndarray:
    """uint8 [N, S, S, 3] to float32 [N, units]."""
    with torch.inference_mode():
        return network.last_hidden(normalize(images)).cpu().numpy()


def nearest_images(query: Path, features: np.ndarray, searched: FoundImages, count: int = NEAREST) -> list[Path]:
    """The images whose activations have the smallest Euclidean distance from `features`, float32 [units].

    The query itself is not among them. Krizhevsky et al. 2012, section 6.1.
    """
    distances = np.linalg.norm(searched.features - features, axis=1)
    ordered = (searched.paths[place] for place in np.argsort(distances, kind="stable"))
    return list(islice((path for path in ordered if not path.samefile(query)), count))


def kernel_grid(weights: np.ndarray) -> np.ndarray:
    """Kernels float32 [K, 3, S, S] to a picture float32 [rows * (S + 1) + 1, columns * (S + 1) + 1, 3], 0 to 1.

    Each kernel is scaled by its own largest weight; a weight of zero is grey. White lines divide them.
    """
    count, _, _, side = weights.shape
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    pixels = (0.5 + 0.5 * weights / np.maximum(largest, 1e-12)).transpose(0, 2, 3, 1)
    rows, step = -(-count // COLUMNS), side + 1
    grid = np.ones((rows * step + 1, min(count, COLUMNS) * step + 1, 3), np.float32)
    for number, kernel in enumerate(pixels):
        upper, left = number // COLUMNS * step + 1, number % COLUMNS * step + 1
        grid[upper : upper + side, left : left + side] = kernel
    return grid


def draw_kernels(trained: Checkpoint, path: Path) -> None:
    """Figure 3: the kernels of the first convolution as a PNG.

    Raises:
        WriteError: it cannot be written.
    """
    weights = trained.weights["features.0.weight"].float().numpy()  # [96, 3, 11, 11] in the 2012 network
    grid = kernel_grid(weights)
    count, channels, height, width = weights.shape
    title = f"{count} kernels of {height} x {width} x {channels}, trained on {trained.data}"
    with new_figure(path, 8, 8 * grid.shape[0] / grid.shape[1] + 0.4, title) as figure:
        axes = figure.subplots()
        axes.imshow(grid, interpolation="nearest")
        axes.axis("off")


def draw_nearest(asked: FoundImages, searched: FoundImages, size: int, path: Path) -> None:
    """Figure 4, right: a row a query, which stands first, with the nearest images in their order, as a PNG.

    `size` is the network's input size. The name of an image's folder, its class as a rule, stands above it.

    Raises:
        WriteError: it cannot be written.
    """
    rows = len(asked.paths)
    with new_figure(path, 7, 1.15 * rows + 0.4, "first column: the query; then the nearest images") as figure:
        charts = figure.subplots(rows, 1 + NEAREST, squeeze=False)
        for axes in charts.flat:
            axes.axis("off")
        for row, query, features in zip(charts, asked.paths, asked.features, strict=True):
            for axes, shown in zip(row, [query, *nearest_images(query, features, searched)], strict=False):
                axes.imshow(_thumbnail(shown, size))
                axes.set_title(shown.parent.name, fontsize=7)


def _thumbnail(path: Path, size: int) -> np.ndarray:
    """The central crop that a network of this input size sees, scaled: uint8 [96, 96, 3]."""
    image = open_image(path.read_bytes())
    return resample(image, center_box(*image.size, size), SIDE)
