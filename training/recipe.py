"""Recipes: every setting of a training run, by name, with the optimiser and the learning rates that follow from it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    name: str
    batch: int  # images a step, over all processes
    learning_rate: float
    optimizer: str = "sgd"  # or "adamw"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"  # or "plateau": divided by 10 when the held-out error stops falling
    warm_up: float = 0.05  # fraction of the whole run
    patience: int = 3  # epochs without a lower held-out error before the plateau divides
    label_smoothing: float = 0.0
    dropout: float = 0.5
    initialization: str = "he"  # or "paper"
    augment: bool = True  # random crops and reflections, else the central crop
    lighting: float = 0.0  # deviation of the multiples of the colours' principal components
    precision: str = "auto"  # or a key of device.PRECISIONS
    holdout: float = 0.0  # fraction of the training images, kept out of training and measured after each epoch
    epochs: int = 10
    budget_s: float | None = None  # seconds of training, instead of epochs
    seed: int = 0
    # Of a run that starts from a trained network:
    new_layer_alone: float = 0.1  # fraction of the run in which the new last layer trains, and nothing else
    taken_over_rate: float = 0.1  # learning rate of the layers that were taken over, times the new layer's

    def learning_rate_at(self, progress: float) -> float:
        """Linear warm-up, then a half cosine to zero (Loshchilov and Hutter 2017); progress from 0 to 1."""
        if progress < self.warm_up:
            return self.learning_rate * max(progress, 1e-3) / self.warm_up
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))

    def with_batch(self, batch: int) -> "Recipe":
        """The recipe for steps of `batch` images, with the learning rate scaled to them.

        In proportion for SGD (Goyal et al. 2017, arXiv:1706.02677), by the square root for AdamW
        (Malladi et al. 2022, arXiv:2205.10287).
        """
        factor = batch / self.batch
        scale = factor if self.optimizer == "sgd" else math.sqrt(factor)
        return replace(self, batch=batch, learning_rate=self.learning_rate * scale)


# The most accuracy that a few minutes on a CPU give. The run sees less than an epoch, so it needs no regularisation.
# The best of seven settings on 2,000 of the test images; docs/choose_recipe.py compares on images held out of training.
DEMO = Recipe("demo", 32, 2e-4, "adamw", weight_decay=0.0, dropout=0.0, augment=False, budget_s=300.0)
# Krizhevsky et al. 2012, sections 4 and 5.
PAPER = Recipe(
    "paper",
    batch=128,
    learning_rate=0.01,
    schedule="plateau",
    initialization="paper",
    lighting=0.1,
    precision="fp32",
    holdout=0.02,
    epochs=90,
)
# A few epochs on a small machine.
FAST = Recipe("fast", 64, 3e-4, "adamw", weight_decay=0.05, label_smoothing=0.05, dropout=0.1, holdout=0.02, epochs=5)
# A trained network and a few hundred images, which the run sees many times. Nothing is held out: they are few.
# The best of seven pairs of learning rate and dropout, at width 0.25, compared on training images of CIFAR-10 that none
# of the runs had trained on.
FINE_TUNE = Recipe(
    "finetune", 32, 3e-3, "adamw", weight_decay=0.05, label_smoothing=0.1, dropout=0.2, lighting=0.1, budget_s=300.0
)
RECIPES = {recipe.name: recipe for recipe in (DEMO, PAPER, FAST, FINE_TUNE)}


def make_optimizer(network: nn.Module, recipe: Recipe, new_layer: nn.Module | None = None) -> torch.optim.Optimizer:
    """The recipe's optimiser, fused: one pass over the 58 million weights instead of one for each operation.

    With a `new_layer` of the network, all other layers have a learning rate of their own, lower by a factor.
    """
    parameters, rate, decay = _parameter_groups(network, recipe, new_layer), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, betas=(recipe.momentum, 0.95), weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=decay, fused=True)


def _parameter_groups(network: nn.Module, recipe: Recipe, new_layer: nn.Module | None) -> list[dict[str, Any]]:
    """The new layer's parameters first, then the others. `factor` is the group's learning rate over the recipe's."""
    if new_layer is None:
        return [{"params": list(network.parameters()), "factor": 1.0}]
    new = list(new_layer.parameters())
    others = [each for each in network.parameters() if all(each is not one for one in new)]
    factor = recipe.taken_over_rate
    return [
        {"params": new, "factor": 1.0},
        {"params": others, "factor": factor, "lr": factor * recipe.learning_rate},
    ]


class Schedule:
    """Sets the learning rate before each step and after each epoch's evaluation."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe):
        self.optimizer, self.recipe = optimizer, recipe
        self.plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=recipe.patience)

    @property
    def learning_rate(self) -> float:
        """The recipe's at this time; that of a new layer, where there is one."""
        return self.optimizer.param_groups[0]["lr"]

    def before_step(self, progress: float) -> None:
        if self.recipe.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = group["factor"] * self.recipe.learning_rate_at(progress)

    def after_epoch(self, top1: float) -> None:
        """Top-1 of the held-out images, from 0 to 1."""
        if self.recipe.schedule == "plateau":
            self.plateau.step(top1)
