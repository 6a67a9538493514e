"""Pictures of training runs."""

from pathlib import Path

from training import files
from training.history import History


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
    losses.set(xlabel="images", ylabel="loss (cross-entropy)", ylim=(0, None))
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
