"""A whole run: data and recipe to a checkpoint, with all that is written down on the way."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from alexnet_triton.training import checkpoint, log
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import Dataset, Split, hold_out, pixel_statistics, skipped
from alexnet_triton.training.device import Group, keep_freed_memory
from alexnet_triton.training.errors import InterruptedRunError
from alexnet_triton.training.evaluate import accuracy, cross_entropy, predict
from alexnet_triton.training.loading import center_crop, make_crop
from alexnet_triton.training.log import EpochRow, History, Scalars, StepRow, write_csv
from alexnet_triton.training.model import AlexNet, NetworkConfig, Normalize, initialize
from alexnet_triton.training.recipe import Recipe
from alexnet_triton.training.trainer import RunningMetrics, StopRequest, Trainer, interrupts

# The result, and the state: weights with up to two moments, written anew while the old one is there.
BYTES_A_WEIGHT = 4 * (1 + 3 + 3)


@dataclass(frozen=True)
class RunConfig:
    """What is trained, for how long, and where to."""

    network: NetworkConfig
    recipe: Recipe
    output: Path
    resume: bool = False
    log_every: int = 50  # steps


def beside(output: Path, suffix: str) -> Path:
    """A file of the same run: `checkpoint.pt` to `checkpoint.epochs.csv`."""
    return output.with_name(output.stem + suffix)


class TrainingRun:
    """One process's part of a run; only the first writes."""

    def __init__(self, config: RunConfig, dataset: Dataset, group: Group, progress: Progress):
        self.config, self.dataset, self.group, self.progress = config, dataset, group, progress
        self.started = time.perf_counter()
        self.train_split, self.held_split = hold_out(dataset.train, config.recipe.holdout)
        self.pixels = pixel_statistics(self.train_split)
        self.normalize = Normalize(self.pixels.mean, self.pixels.std)
        keep_freed_memory()
        torch.manual_seed(config.recipe.seed)
        network = AlexNet(config.network)
        initialize(network, config.recipe.initialization)
        torch.manual_seed(config.recipe.seed + group.rank)  # what is dropped out differs from process to process
        cut = make_crop(config.network.input_size, config.recipe, self.pixels)
        self.trainer = Trainer(network, self.normalize, self.train_split, cut, config.recipe, group)
        self.history, self.row_sums = History(), RunningMetrics()
        self.epoch_sums, self.epoch_seconds = RunningMetrics(), 0.0
        self.center = center_crop(config.network.input_size)
        self.saved_at, self.saving_s = self.started, 0.0
        self.state_path = beside(config.output, ".state.pt")

    def train(self) -> Checkpoint:
        """Train to the end, evaluate on all of the test split.

        Raises:
            InterruptedRunError: a signal asked to stop; the state is saved.
            CheckpointError: something cannot be written, or taken up.
            DataError: too many images are damaged.
        """
        weights = sum(parameter.numel() for parameter in self.trainer.network.parameters())
        checkpoint.require_space(self.config.output.parent, weights * BYTES_A_WEIGHT)
        if self.config.resume:
            self._take_up()
        self.scalars = self._scalars()
        self.task = self.progress.add_task("training", total=1.0, note="")
        with interrupts() as wish:
            while not self.trainer.finished:
                self._epoch(wish)
        return self._finish()

    def _epoch(self, wish: StopRequest) -> None:
        before_s = self.trainer.clock.seconds - self.epoch_seconds
        for step in self.trainer.epoch():
            self.epoch_sums.merge(step)
            self.row_sums.merge(step)
            self.epoch_seconds = self.trainer.clock.seconds - before_s
            self._after_step()
            if self.group.sum([wish.stop])[0] and not self.trainer.finished:
                self._save_state()
                self._draw()
                raise InterruptedRunError(
                    f"stopped after step {self.trainer.position.steps:,}; the same command with --resume goes on"
                )
        self._after_epoch()
        # Short epochs are not all worth a state: writing takes a twentieth of the time at most.
        worth = self.group.of_first([time.perf_counter() - self.saved_at - 20 * self.saving_s])[0] > 0
        if worth and not self.trainer.finished:
            self._save_state()

    def _after_step(self) -> None:
        trainer, position = self.trainer, self.trainer.position
        rate = self.epoch_sums.images * self.group.world / max(self.epoch_seconds, 1e-9)
        note = f"loss {self.row_sums.mean_loss:.3f}, {position.images:,} images, {rate:.0f}/s"
        self.progress.update(self.task, completed=trainer.progress, note=note)
        if position.steps % self.config.log_every and not trainer.finished:
            return
        sums = self.row_sums.over(self.group)
        row = StepRow(position.steps, position.images, sums.mean_loss, trainer.schedule.learning_rate)
        self.history.steps.append(row)
        self.row_sums = RunningMetrics()
        if self.scalars:
            self.scalars.step(row)

    def _after_epoch(self) -> None:
        sums, position = self.epoch_sums.over(self.group), self.trainer.position
        held: list[float | None] = [None, None, None]
        if self.held_split:
            probabilities, labels = self._predict(self.held_split, "held-out")
            measured = accuracy(probabilities, labels)
            self.trainer.schedule.after_epoch(measured.top1)
            held = [cross_entropy(probabilities, labels), measured.top1, measured.top5]
        row = EpochRow(
            len(self.history.epochs) + 1,
            position.images,
            self.trainer.clock.seconds,
            time.perf_counter() - self.started,
            sums.images / self.epoch_seconds,
            sums.waited_s / self.group.world,
            self.trainer.schedule.learning_rate,
            sums.mean_loss,
            sums.hits / sums.images,
            *held,
        )
        self.history.epochs.append(row)
        self.epoch_sums, self.epoch_seconds = RunningMetrics(), 0.0
        if self.group.is_first:
            self._write_down(row)

    def _write_down(self, row: EpochRow) -> None:
        output = self.config.output
        write_csv(self.history.epochs, EpochRow, beside(output, ".epochs.csv"))
        write_csv(self.history.steps, StepRow, beside(output, ".steps.csv"))
        if self.scalars:
            self.scalars.epoch(row)
        held = f", held-out loss {row.held_loss:.3f}, top-1 {row.held_top1:.4f}" if row.held_top1 is not None else ""
        self.progress.console.print(
            f"epoch {row.epoch}: {row.images:,} images, {row.seconds:.0f} s, {row.images_per_second:.0f}/s, "
            f"waited {row.waited_s:.1f} s; loss {row.loss:.3f}, top-1 {row.top1:.4f}{held}"
        )

    def _draw(self) -> None:
        if self.group.is_first:
            title = f"{self.config.network.name} on {self.dataset.name}"
            log.draw(self.history, title, beside(self.config.output, ".curves.png"))

    def _predict(self, split: Split, what: str) -> tuple[np.ndarray, np.ndarray]:
        task = self.progress.add_task(what, total=len(split.labels), note="")
        answers = predict(
            self.trainer.network,
            self.normalize,
            split,
            self.center,
            precision=self.trainer.precision,
            group=self.group,
            advance=lambda images: self.progress.advance(task, images),
        )
        self.progress.remove_task(task)
        return answers

    def _scalars(self) -> Scalars | None:
        if not self.group.is_first:
            return None
        return Scalars(beside(self.config.output, ".tensorboard"), self.trainer.position.images)

    def _identity(self) -> dict[str, Any]:
        """What a run that is taken up must be the same in."""
        return {
            "network": asdict(self.config.network),
            "recipe": asdict(self.config.recipe),
            "data": self.dataset.name,
            "classes": list(self.dataset.classes),
            "images": len(self.train_split.labels),
            "processes": self.group.world,
        }

    def _save_state(self) -> None:
        start = time.perf_counter()
        state = self.trainer.state()  # in every process: their random states are gathered
        own = {
            "epoch_sums": asdict(self.epoch_sums),
            "epoch_seconds": self.epoch_seconds,
            "row_sums": asdict(self.row_sums),
            "history": self.history.state(),
        }
        if self.group.is_first:
            checkpoint.save_state(self.state_path, self._identity(), {**state, **own})
        self.saved_at = time.perf_counter()
        self.saving_s = self.saved_at - start

    def _take_up(self) -> None:
        state = checkpoint.load_state(self.state_path, self._identity())
        self.trainer.restore(state)
        self.history = History.of_state(state["history"])
        self.epoch_sums, self.epoch_seconds = RunningMetrics(**state["epoch_sums"]), state["epoch_seconds"]
        self.row_sums = RunningMetrics(**state["row_sums"])

    def _finish(self) -> Checkpoint:
        if self.scalars:
            self.scalars.close()
        self._draw()
        trained = self._checkpoint({})
        if self.group.is_first:
            checkpoint.save(trained, self.config.output)  # testing can take long: nothing is lost if it is cut off
        measured = accuracy(*self._predict(self.dataset.test, "testing"))
        trained = self._checkpoint(asdict(measured))
        if self.group.is_first:
            checkpoint.save(trained, self.config.output)
            self.state_path.unlink(missing_ok=True)
        return trained

    def _checkpoint(self, measured: dict[str, Any]) -> Checkpoint:
        network = self.trainer.network
        weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        return Checkpoint(
            self.config.network,
            weights,
            self.dataset.classes,
            self.pixels.mean,
            self.pixels.std,
            self.dataset.name,
            asdict(self.config.recipe),
            self._split_sizes(),
            {**measured, **self._speed()},
        )

    def _split_sizes(self) -> dict[str, int]:
        held = 0 if self.held_split is None else len(self.held_split.labels)
        return {"train": len(self.train_split.labels), "held_out": held, "test": len(self.dataset.test.labels)}

    def _speed(self) -> dict[str, Any]:
        seconds, images = self.trainer.clock.seconds, self.trainer.position.images
        damaged = skipped(self.dataset.train) | skipped(self.dataset.test)
        return {
            "precision": self.trainer.precision,
            "processes": self.group.world,
            "trained_images": images,
            "seconds": round(seconds, 1),
            "wall_s": round(time.perf_counter() - self.started, 1),
            "images_per_second": round(images / seconds, 1),
            "waited_for_data_s": round(sum(row.waited_s for row in self.history.epochs), 1),
            "skipped_images": len(frozenset().union(*self.group.gather(damaged))),
        }
