"""What a run writes down: a CSV of its epochs, a CSV of its losses, TensorBoard scalars."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from training.files import write_text


@dataclass(frozen=True)
class EpochRow:
    """One epoch; the last may be incomplete. Figures of the held-out images are None where none are held out."""

    epoch: int
    images: int  # trained on since the start of the run
    seconds: float  # of training, in all
    wall_s: float  # since the start or the resumption, with evaluation, writing and standing still
    images_per_second: float
    waited_s: float  # for data, in this epoch
    learning_rate: float
    loss: float
    top1: float  # on the augmented training images, as they passed
    held_loss: float | None
    held_top1: float | None
    held_top5: float | None


@dataclass(frozen=True)
class StepRow:
    """Mean loss of the steps since the row before."""

    step: int
    images: int
    loss: float
    learning_rate: float


@dataclass
class History:
    """The rows of a run so far."""

    epochs: list[EpochRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of_state(state: dict[str, Any]) -> "History":
        return History([EpochRow(**row) for row in state["epochs"]], [StepRow(**row) for row in state["steps"]])


def write_csv(rows: Sequence[Any], row_type: type, path: Path) -> None:
    """Rows of a dataclass with its fields as the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(row_type)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rounded(asdict(row)) for row in rows)
    write_text(path, text.getvalue())


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


class Scalars:
    """TensorBoard scalars in a folder, by images trained on."""

    def __init__(self, folder: Path, resumed_at: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at or None)

    def step(self, row: StepRow) -> None:
        self._writer.add_scalar("train/loss", row.loss, row.images)
        self._writer.add_scalar("train/learning_rate", row.learning_rate, row.images)

    def epoch(self, row: EpochRow) -> None:
        figures = {"train/top1": row.top1, "train/images_per_second": row.images_per_second}
        held = {"held/loss": row.held_loss, "held/top1": row.held_top1, "held/top5": row.held_top5}
        for name, value in {**figures, **held}.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.images)

    def close(self) -> None:
        self._writer.close()
