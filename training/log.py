"""What a run shows and writes down: progress bars, tables of its epochs and steps, TensorBoard scalars, charts."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from alexnet_triton.common import files

NAMED_CLASSES = 40  # a confusion matrix of more classes has no names: nobody could read them


def progress_bar(visible: bool = True) -> Progress:
    """A bar with a note and the time left, on stderr if that is a terminal."""
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    note = TextColumn("{task.fields[note]}")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    return Progress(
        *columns, TimeRemainingColumn(), note, console=console, disable=not (visible and console.is_terminal)
    )


@dataclass(frozen=True)
class EpochRow:
    """One epoch; the last may be incomplete. The held-out figures are None in a run that holds no images out."""

    epoch: int
    images: int  # trained on since the start of the run
    seconds: float  # of training, in all
    wall_s: float  # since the start or the resumption, with evaluation and writing
    images_per_second: float
    waited_s: float  # for data, in this epoch
    learning_rate: float
    loss: float
    top1: float  # on the augmented training images, as they passed
    held_loss: float | None = None
    held_top1: float | None = None
    held_top5: float | None = None


@dataclass(frozen=True)
class StepRow:
    """Mean loss of the steps since the previous row."""

    step: int
    images: int
    loss: float
    learning_rate: float


@dataclass
class History:
    """The rows of a run so far."""

    epochs: list[EpochRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)


def write_csv(rows: Sequence[Any], row_type: type, path: Path) -> None:
    """Rows of a dataclass, with its fields as the header.

    Raises:
        WriteError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(row_type)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rounded(asdict(row)) for row in rows)
    files.write_text(path, text.getvalue())


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


class Scalars:
    """TensorBoard scalars in a folder, by images trained on."""

    def __init__(self, folder: Path, resumed_at: int):
        from tensorboardX import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at or None)

    def step(self, row: StepRow) -> None:
        self._write({"train/loss": row.loss, "train/learning_rate": row.learning_rate}, row.images)

    def epoch(self, row: EpochRow) -> None:
        figures = {"train/top1": row.top1, "train/images_per_second": row.images_per_second}
        held = {"held/loss": row.held_loss, "held/top1": row.held_top1, "held/top5": row.held_top5}
        self._write({**figures, **held}, row.images)

    def _write(self, figures: dict[str, Any], images: int) -> None:
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, images)

    def close(self) -> None:
        self._writer.close()


@contextmanager
def new_figure(path: Path, width: float, height: float, title: str | None = None) -> Iterator[Any]:
    """An empty matplotlib figure, in inches, which is written as a PNG at the end of the block.

    Raises:
        WriteError: it cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    if title:
        figure.suptitle(title)
    yield figure
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def from_zero(axes: Any) -> None:
    """Let the vertical axis start at zero, with room above the data."""
    highest = axes.dataLim.ymax  # infinite where there are no data
    axes.set_ylim(0, highest * 1.06 if 0 < highest < math.inf else 1)


@contextmanager
def two_charts(path: Path, title: str | None = None, share_y: bool = False) -> Iterator[tuple[Any, Any]]:
    """Two pairs of axes side by side, which get grids and legends and are written as a PNG at the end of the block.

    Raises:
        WriteError: it cannot be written.
    """
    with new_figure(path, 9, 3.8, title) as figure:
        charts = figure.subplots(1, 2, sharey=share_y)
        yield charts
        for axes in charts:
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()


def draw_curves(history: History, title: str, path: Path) -> None:
    """Loss of the steps and accuracy of the epochs over the images trained on, as a PNG."""
    steps, epochs = history.steps, history.epochs
    held = [row for row in epochs if row.held_top1 is not None]
    with two_charts(path, title) as (losses, accuracies):
        losses.plot([row.images for row in steps], [row.loss for row in steps], linewidth=0.8, label="training")
        losses.plot([row.images for row in held], [row.held_loss for row in held], "o-", label="held-out")
        losses.set(xlabel="images", ylabel="loss (cross-entropy)", xlim=(0, None))
        from_zero(losses)
        accuracies.plot([row.images for row in epochs], [row.top1 for row in epochs], "o-", label="training")
        accuracies.plot([row.images for row in held], [row.held_top1 for row in held], "o-", label="held-out")
        accuracies.set(xlabel="images", ylabel="top-1", xlim=(0, None), ylim=(None, 1))


def draw_confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Counts by label and answer, [classes, classes], as fractions of each label's images in a PNG."""
    side = min(2.5 + 0.55 * len(classes), 20)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with new_figure(path, side + 0.8, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the label's images")
        axes.set(xlabel="answer", ylabel="label")
        if len(classes) > NAMED_CLASSES:
            return
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        for label, answer in np.argwhere(counts):
            colour = "white" if fractions[label, answer] > 0.5 else "black"
            axes.text(answer, label, counts[label, answer], ha="center", va="center", fontsize=8, color=colour)


# ---- top-1 and top-5


@dataclass(frozen=True)
class Accuracy:
    """Fractions of the images whose label is the most probable class, and among the five most probable."""

    top1: float
    top5: float
    images: int


def accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Top-1 and top-5 of scores, as in `topk_hits`."""
    return Accuracy(topk_hits(scores, labels, 1), topk_hits(scores, labels, 5), len(labels))


def topk_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The fraction of images whose label is among the k highest-scored classes; of equal scores the first class wins.

    Args:
        scores: logits or probabilities, float [N, classes].
        labels: int64 [N].
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p of the label, in nats. Probabilities float [N, classes], labels int64 [N]."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts by label and answer, int64 [classes, classes]."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
