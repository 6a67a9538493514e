"""Optimisers and learning rates of a recipe."""

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from training.recipe import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused: one pass over the 58 million weights rather than one for each of the formula's operations."""
    parameters, rate, decay = network.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, betas=(recipe.momentum, 0.95), weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay, fused=True)


class Schedule:
    """Sets the learning rate before each step, and after each epoch's evaluation."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe):
        self.optimizer, self.recipe = optimizer, recipe
        self.plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=recipe.patience)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def before_step(self, progress: float) -> None:
        if self.recipe.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate_at(progress)

    def after_epoch(self, top1: float) -> None:
        """Top-1 of the held-out images, in [0, 1]."""
        if self.recipe.schedule == "plateau":
            self.plateau.step(top1)
