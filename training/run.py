"""A whole run: from data and a recipe to a checkpoint, with the state, tables and curves that it writes on the way."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
from rich.progress import Progress

from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import Dataset, damaged_paths, hold_out, pixel_statistics
from alexnet_triton.training.device import Group, keep_freed_memory
from alexnet_triton.training.errors import InterruptedRunError
from alexnet_triton.training.evaluate import predict
from alexnet_triton.training.finetune import Initial
from alexnet_triton.training.loading import center_crop, make_crop
from alexnet_triton.training.log import (
    EpochRow,
    History,
    Scalars,
    StepRow,
    accuracy,
    cross_entropy,
    draw_curves,
    write_csv,
)
from alexnet_triton.training.model import AlexNet, NetworkConfig, Normalize, initialize
from alexnet_triton.training.recipe import Recipe
from alexnet_triton.training.trainer import RunningMetrics, Trainer, stop_on_signals

# The checkpoint, and the state twice: weights with up to two moments, the new one written beside the old one.
BYTES_A_WEIGHT = 4 * (1 + 3 + 3)
SAVING_FRACTION = 1 / 20  # of a run's time, at most, that goes into saving its state


@dataclass(frozen=True)
class RunConfig:
    """What is trained, for how long, and where the result goes."""

    network: NetworkConfig
    recipe: Recipe
    output: Path
    resume: bool = False
    log_every: int = 50  # steps
    initial: Initial | None = None  # the trained network to start from


class TrainingRun:
    """One process's share of a run. Only the first process writes."""

    def __init__(self, config: RunConfig, dataset: Dataset, group: Group, progress: Progress):
        self.config, self.dataset, self.group, self.progress = config, dataset, group, progress
        self.started = self.saved_at = time.perf_counter()
        self.saving_s = 0.0
        self.train_split, self.held_split = hold_out(dataset.train, config.recipe.holdout)
        self.pixels = pixel_statistics(self.train_split)
        if config.initial:
            self.pixels = config.initial.normalize_as_before(self.pixels)
        self.normalize = Normalize(self.pixels.mean, self.pixels.std)
        self.trainer = self._make_trainer()
        network, precision = self.trainer.network, self.trainer.precision
        crop = center_crop(config.network.input_size)
        self.predict = partial(
            predict, network, self.normalize, crop=crop, precision=precision, group=group, progress=progress
        )
        self.history = History()
        self.row_metrics = RunningMetrics()  # since the last row of steps
        self.epoch_metrics, self.epoch_seconds = RunningMetrics(), 0.0
        self.state_path = self._beside(".state.pt")

    def _make_trainer(self) -> Trainer:
        network_config, recipe = self.config.network, self.config.recipe
        keep_freed_memory()
        torch.manual_seed(recipe.seed)
        network = AlexNet(network_config)
        initialize(network, recipe.initialization)
        initial = self.config.initial
        new_layer = initial.hand_over(network) if initial else None
        torch.manual_seed(recipe.seed + self.group.rank)  # dropout differs from process to process
        crop = make_crop(network_config.input_size, recipe, self.pixels)
        return Trainer(network, self.normalize, self.train_split, crop, recipe, self.group, new_layer)

    def _beside(self, suffix: str) -> Path:
        """A file of the same run: `checkpoint.pt` to `checkpoint.epochs.csv`."""
        return self.config.output.with_name(self.config.output.stem + suffix)

    def train(self) -> Checkpoint:
        """Train to the end, then evaluate on the whole test split.

        Raises:
            InterruptedRunError: a signal asked the run to stop; its state is saved.
            CheckpointError: there is no space, or no state to resume from.
            WriteError: a file cannot be written.
            DataError: too many images are damaged.
        """
        weights = sum(parameter.numel() for parameter in self.trainer.network.parameters())
        checkpoint.require_space(self.config.output.parent, weights * BYTES_A_WEIGHT)
        if self.config.resume:
            self._resume()
        self._say_what_was_taken_over()
        images = self.trainer.position.images
        self.scalars = Scalars(self._beside(".tensorboard"), images) if self.group.is_first else None
        self.task = self.progress.add_task("training", total=1.0, note="")
        with stop_on_signals() as stop:
            while not self.trainer.finished:
                self._epoch(stop)
        return self._finish()

    def _say_what_was_taken_over(self) -> None:
        initial, recipe = self.config.initial, self.config.recipe
        if not initial or not self.group.is_first:
            return
        self.progress.console.print(initial.summary(len(self.dataset.classes)), markup=False)
        self.progress.console.print(
            f"the last layer trains alone for {recipe.new_layer_alone:.0%} of the run; then all layers train, those "
            f"taken over at {recipe.taken_over_rate:g} of its learning rate"
        )

    def _epoch(self, stop: Event) -> None:
        seconds_before = self.trainer.seconds - self.epoch_seconds
        for step in self.trainer.epoch():
            self.epoch_metrics.merge(step)
            self.row_metrics.merge(step)
            self.epoch_seconds = self.trainer.seconds - seconds_before
            self._after_step()
            if self.group.sum([stop.is_set()])[0] and not self.trainer.finished:
                self._stop()
        self._after_epoch()
        since_saved_s = time.perf_counter() - self.saved_at
        due = self.group.of_first([since_saved_s - self.saving_s / SAVING_FRACTION])[0] > 0
        if due and not self.trainer.finished:
            self._save_state()

    def _stop(self) -> None:
        self._save_state()
        self._draw()
        raise InterruptedRunError(
            f"stopped after step {self.trainer.position.steps:,}; to continue, give the same command with --resume"
        )

    def _after_step(self) -> None:
        trainer, position = self.trainer, self.trainer.position
        rate = self.epoch_metrics.images * self.group.world / max(self.epoch_seconds, 1e-9)
        note = f"loss {self.row_metrics.mean_loss:.3f}, {position.images:,} images, {rate:.0f}/s"
        self.progress.update(self.task, completed=trainer.progress, note=note)
        if position.steps % self.config.log_every and not trainer.finished:
            return
        mean_loss = self.row_metrics.over(self.group).mean_loss
        row = StepRow(position.steps, position.images, mean_loss, trainer.schedule.learning_rate)
        self.history.steps.append(row)
        self.row_metrics = RunningMetrics()
        if self.scalars:
            self.scalars.step(row)

    def _after_epoch(self) -> None:
        metrics = self.epoch_metrics.over(self.group)
        held = self._measure_held_out()  # may lower the learning rate
        row = EpochRow(
            epoch=len(self.history.epochs) + 1,
            images=self.trainer.position.images,
            seconds=self.trainer.seconds,
            wall_s=time.perf_counter() - self.started,
            images_per_second=metrics.images / self.epoch_seconds,
            waited_s=metrics.waited_s / self.group.world,
            learning_rate=self.trainer.schedule.learning_rate,
            loss=metrics.mean_loss,
            top1=metrics.hits / metrics.images,
            **held,
        )
        self.history.epochs.append(row)
        self.epoch_metrics, self.epoch_seconds = RunningMetrics(), 0.0
        if self.group.is_first:
            self._write_down(row)

    def _measure_held_out(self) -> dict[str, float]:
        """The held-out figures of an epoch's row, from which the schedule may lower its learning rate."""
        if not self.held_split:
            return {}
        probabilities, labels = self.predict(split=self.held_split, what="held-out")
        measured = accuracy(probabilities, labels)
        self.trainer.schedule.after_epoch(measured.top1)
        loss = cross_entropy(probabilities, labels)
        return {"held_loss": loss, "held_top1": measured.top1, "held_top5": measured.top5}

    def _write_down(self, row: EpochRow) -> None:
        write_csv(self.history.epochs, EpochRow, self._beside(".epochs.csv"))
        write_csv(self.history.steps, StepRow, self._beside(".steps.csv"))
        if self.scalars:
            self.scalars.epoch(row)
        held = f", held-out loss {row.held_loss:.3f}, top-1 {row.held_top1:.4f}" if row.held_top1 is not None else ""
        self.progress.console.print(
            f"epoch {row.epoch}: {row.images:,} images, {row.seconds:.0f} s, {row.images_per_second:.0f}/s, "
            f"waited {row.waited_s:.1f} s; loss {row.loss:.3f}, top-1 {row.top1:.4f}{held}"
        )

    def _draw(self) -> None:
        if self.group.is_first:
            draw_curves(self.history, f"{self.config.network.name} on {self.dataset.name}", self._beside(".curves.png"))

    def _identity(self) -> dict[str, Any]:
        """What must be the same in a run that resumes this one."""
        return {
            "network": asdict(self.config.network),
            "recipe": asdict(self.config.recipe),
            "data": self.dataset.name,
            "classes": list(self.dataset.classes),
            "images": len(self.train_split.labels),
            "processes": self.group.world,
            "init": self.config.initial and self.config.initial.sha256,
        }

    def _save_state(self) -> None:
        start = time.perf_counter()
        state = self.trainer.state()  # in every process: it gathers their random states
        own = {
            "epoch_metrics": asdict(self.epoch_metrics),
            "epoch_seconds": self.epoch_seconds,
            "row_metrics": asdict(self.row_metrics),
            "history": asdict(self.history),
        }
        if self.group.is_first:
            checkpoint.save_state(self.state_path, self._identity(), {**state, **own})
        self.saved_at = time.perf_counter()
        self.saving_s = self.saved_at - start

    def _resume(self) -> None:
        state = checkpoint.load_state(self.state_path, self._identity())
        self.trainer.restore(state)
        epochs, steps = state["history"]["epochs"], state["history"]["steps"]
        self.history = History([EpochRow(**row) for row in epochs], [StepRow(**row) for row in steps])
        self.epoch_metrics, self.epoch_seconds = RunningMetrics(**state["epoch_metrics"]), state["epoch_seconds"]
        self.row_metrics = RunningMetrics(**state["row_metrics"])

    def _finish(self) -> Checkpoint:
        if self.scalars:
            self.scalars.close()
        self._draw()
        trained = self._checkpoint({})
        if self.group.is_first:
            checkpoint.save(trained, self.config.output)  # an interruption of the long test loses nothing
        measured = accuracy(*self.predict(split=self.dataset.test))
        trained = self._checkpoint(asdict(measured))
        if self.group.is_first:
            checkpoint.save(trained, self.config.output)
            self.state_path.unlink(missing_ok=True)
        return trained

    def _checkpoint(self, measured: dict[str, Any]) -> Checkpoint:
        weights = self.trainer.network.state_dict()
        held_out = 0 if self.held_split is None else len(self.held_split.labels)
        sizes = {"train": len(self.train_split.labels), "held_out": held_out, "test": len(self.dataset.test.labels)}
        return Checkpoint(
            self.config.network,
            {name: tensor.cpu().contiguous() for name, tensor in weights.items()},
            self.dataset.classes,
            self.pixels.mean,
            self.pixels.std,
            self.dataset.name,
            asdict(self.config.recipe),
            sizes,
            {**measured, **self._speed()},
            self.config.initial.describe() if self.config.initial else {},
        )

    def _speed(self) -> dict[str, Any]:
        seconds, images = self.trainer.seconds, self.trainer.position.images
        damaged = damaged_paths(self.dataset.train) | damaged_paths(self.dataset.test)
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
