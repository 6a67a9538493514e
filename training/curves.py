"""Pictures of training runs and of what a network confuses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import files
from training.history import History


def from_zero(axes: Any) -> None:
    """Let the vertical axis start at zero, with room above the data."""
    axes.set_ylim(0, max(axes.dataLim.ymax, 1e-9) * 1.06)


def draw(history: History, title: str, path: Path) -> None:
    """Loss of the steps and accuracy of the epochs over the images trained on, as a PNG.

    Raises:
        CheckpointError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    figure.suptitle(title)
    losses, accuracies = figure.subplots(1, 2)
    losses.plot([row.images for row in history.steps], [row.loss for row in history.steps], linewidth=0.8)
    held = [row for row in history.epochs if row.held_top1 is not None]
    losses.plot([row.images for row in held], [row.held_loss for row in held], "o-", label="held-out images")
    losses.set(xlabel="images", ylabel="loss (cross-entropy)")
    from_zero(losses)
    accuracies.plot(
        [row.images for row in history.epochs], [row.top1 for row in history.epochs], "o-", label="training"
    )
    accuracies.plot([row.images for row in held], [row.held_top1 for row in held], "o-", label="held-out")
    accuracies.set(xlabel="images", ylabel="top-1", ylim=(None, 1))
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    accuracies.legend(loc="lower right")
    files.replace(path, lambda temporary: figure.savefig(temporary, format="png"))


NAMED_CLASSES = 40  # more names than that cannot be read


def draw_confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Counts by label and answer, [classes, classes], as parts of each label's images in a PNG.

    Raises:
        CheckpointError: it cannot be written.
    """
    from matplotlib.figure import Figure

    side = min(2.5 + 0.55 * len(classes), 20)
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="part of the label's images")
    axes.set(xlabel="answer", ylabel="label")
    if len(classes) <= NAMED_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        for label, answer in np.argwhere(counts):
            colour = "white" if parts[label, answer] > 0.5 else "black"
            axes.text(answer, label, counts[label, answer], ha="center", va="center", fontsize=8, color=colour)
    files.replace(path, lambda temporary: figure.savefig(temporary, format="png"))
