"""The training loop: steps, epochs, the state to resume from, and requests to stop."""

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from threading import Event
from time import perf_counter
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_triton.training.data import Split
from alexnet_triton.training.device import Group, mixed_precision, pick_device, pick_precision, place
from alexnet_triton.training.errors import DataError
from alexnet_triton.training.loading import Crop, batches, share, shuffled, steps_per_epoch
from alexnet_triton.training.model import Normalize
from alexnet_triton.training.recipe import Recipe, Schedule, make_optimizer


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that the first Ctrl-C or SIGTERM sets: the run stops after its step. A second one ends the process."""
    stop = Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])


@dataclass
class Position:
    """Where a run is: `step` of `epoch` is the next one."""

    epoch: int = 0
    step: int = 0
    steps: int = 0  # made in all
    images: int = 0  # trained on in all, over all processes


@dataclass
class RunningMetrics:
    """Sums over the steps of one process."""

    images: int = 0
    loss: float = 0.0  # sum over images
    hits: int = 0  # images whose label was the most probable class
    waited_s: float = 0.0

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.images, 1)

    def merge(self, other: "RunningMetrics") -> None:
        self.images += other.images
        self.loss += other.loss
        self.hits += other.hits
        self.waited_s += other.waited_s

    def over(self, group: Group) -> "RunningMetrics":
        """The metrics of all processes, in all of them."""
        images, loss, hits, waited_s = group.sum([self.images, self.loss, self.hits, self.waited_s])
        return RunningMetrics(int(images), loss, int(hits), waited_s)


@dataclass
class Trainer:
    """A network in training. Iterate over `epoch()`; each step yields its RunningMetrics.

    With a `new_layer`, the others were taken over from a trained network: at first they are frozen, then they train
    at a lower learning rate.
    """

    network: nn.Module
    normalize: Normalize
    split: Split
    crop: Crop
    recipe: Recipe
    group: Group = field(default_factory=Group)
    new_layer: nn.Module | None = None  # of the network

    def __post_init__(self) -> None:
        self.device = pick_device()
        place(self.network, self.device)
        self.normalize.to(self.device)
        self.alone = False  # whether the new layer trains alone
        self.wrapped = self.group.wrap(self.network)
        self.optimizer = make_optimizer(self.network, self.recipe, self.new_layer)
        self.schedule = Schedule(self.optimizer, self.recipe)
        self.precision = pick_precision(self.recipe.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.position, self.progress = Position(), 0.0
        self.seconds = 0.0  # of training: loading and steps, without the work between epochs
        self.batch = min(self.recipe.batch, len(self.split.labels))
        self.steps_per_epoch = steps_per_epoch(len(self.split.labels), self.batch)

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    def epoch(self) -> Iterator[RunningMetrics]:
        """The steps left of this epoch, or of the run if that ends first."""
        self.network.train()
        start, seconds_before = perf_counter(), self.seconds
        for images, labels, waited_s in self._batches():
            self.schedule.before_step(self.progress)
            self._freeze_or_release()
            loss, hits = self._step(images, labels)
            self.seconds = seconds_before + perf_counter() - start
            self._advance()
            yield RunningMetrics(len(labels), loss * len(labels), hits, waited_s)
            if self.finished:
                return
        self.position.epoch, self.position.step = self.position.epoch + 1, 0

    def _freeze_or_release(self) -> None:
        """Freeze the layers that were taken over for the first part of the run, and release them after it."""
        alone = self.new_layer is not None and self.progress < self.recipe.new_layer_alone
        if alone == self.alone:
            return
        self.alone = alone
        self.network.requires_grad_(not alone)
        if self.new_layer is not None:
            self.new_layer.requires_grad_()
        self.wrapped = self.network
        gc.collect()  # the old wrapper is in a cycle, and its hooks would go on averaging
        self.wrapped = self.group.wrap(self.network)  # the gradients that are averaged are chosen here

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """This process's share of the batches, with the seconds that it waited for each."""
        count = len(self.split.labels)
        chunks = shuffled(count, self.batch, self.recipe.seed, self.position.epoch)
        left = (chunk for number, chunk in enumerate(chunks) if number >= self.position.step)
        mine = share(left, self.group.rank, self.group.world)
        loader = batches(self.split, mine, self.crop, pin=self.device.type == "cuda")
        start = perf_counter()
        for images, labels in loader:
            if not len(labels):
                raise DataError("every image of a step is damaged; remove or replace the images named above")
            yield images, labels, perf_counter() - start
            start = perf_counter()

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """Train on images uint8 [B, S, S, 3] and labels int64 [B]; returns the mean loss and the hits."""
        targets = labels.to(self.device, non_blocking=True)
        with mixed_precision(self.device, self.precision):
            logits = self.wrapped(self.normalize(images.to(self.device, non_blocking=True)))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), int((logits.argmax(dim=1) == targets).sum())

    def _advance(self) -> None:
        self.position.step += 1
        self.position.steps += 1
        self.position.images += self.batch
        done = self.position.epoch * self.steps_per_epoch + self.position.step
        if self.recipe.budget_s is None:
            self.progress = min(done / (self.recipe.epochs * self.steps_per_epoch), 1.0)
        else:  # each process has its own clock, but all must take the same steps
            self.progress = min(self.group.of_first([self.seconds])[0] / self.recipe.budget_s, 1.0)

    def _stateful(self) -> dict[str, Any]:
        plateau = self.schedule.plateau
        return {"weights": self.network, "optimizer": self.optimizer, "plateau": plateau, "scaler": self.scaler}

    def state(self) -> dict[str, Any]:
        """All that decides what the next step does. Every process of the group must call it."""
        return {
            **{name: each.state_dict() for name, each in self._stateful().items()},
            "position": asdict(self.position),
            "progress": self.progress,
            "seconds": self.seconds,
            "random": self.group.gather(_random_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state` of the same network and recipe."""
        for name, each in self._stateful().items():
            each.load_state_dict(state[name])
        self.position = Position(**state["position"])
        self.progress, self.seconds = state["progress"], state["seconds"]
        _restore_random_state(state["random"][self.group.rank])


def _random_state() -> dict[str, Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _restore_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
