"""Answers of a network on a whole split, and what they are worth."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from training.device import mixed_precision, pick_device, place
from training.distributed import Group
from training.loading import Cut, batches, in_order
from training.model import Normalize
from training.splits import Split

BATCH = 100


@dataclass(frozen=True)
class Accuracy:
    """Parts of the images whose label is the most probable, and among the five most probable."""

    top1: float
    top5: float
    images: int

    def __str__(self) -> str:
        return f"top-1 {self.top1:.4f}, top-5 {self.top5:.4f} on {self.images:,} images"


def accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Scores float [N, classes] (logits or probabilities) against labels int64 [N]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = best == labels[:, None]
    return Accuracy(float(hits[:, 0].mean()), float(hits.any(axis=1).mean()), len(labels))


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p of the label, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())


def predict(
    network: nn.Module,
    normalize: Normalize,
    split: Split,
    cut: Cut,
    *,
    precision: str = "auto",
    group: Group | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, classes] and labels int64 [N] of all images that are not damaged, in order.

    `cut` makes one view of an image, [S, S, 3], or several, [V, S, S, 3], whose probabilities are averaged.
    The processes of a group share the batches out and all get all answers, the same bits as one process;
    `advance` hears of each batch done.
    """
    device, group = pick_device(), group or Group()
    place(network, device)
    network.eval()
    normalize.to(device)
    mine = islice(in_order(len(split.labels), BATCH), group.rank, None, group.world)
    answers = []
    for images, labels in batches(split, mine, cut):
        answers.append((_probabilities(network, normalize, images, len(labels), device, precision), labels.numpy()))
        advance(len(labels) * group.world)
    return merge(group.gather(answers))


def _probabilities(
    network: nn.Module, normalize: Normalize, images: Tensor, count: int, device: torch.device, precision: str
) -> np.ndarray:
    """uint8 [B, S, S, 3] or [B, V, S, S, 3] to the means over V views, float32 [B, classes]."""
    if not count:  # all of these images are damaged
        return np.empty((0, 0), np.float32)
    parts = []
    with torch.inference_mode(), mixed_precision(device, precision):
        for views in images.flatten(0, -4).split(BATCH):
            parts.append(network(normalize(views.to(device))).float().softmax(dim=1))
    return torch.cat(parts).unflatten(0, (count, -1)).mean(dim=1).cpu().numpy()


def merge(by_rank: list[list[tuple[np.ndarray, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """Batches of all ranks, dealt out in turn, put together again."""
    rounds = max(map(len, by_rank))
    dealt = [answers[turn] for turn in range(rounds) for answers in by_rank if turn < len(answers)]
    dealt = [(scores, labels) for scores, labels in dealt if len(labels)]
    return np.concatenate([scores for scores, _ in dealt]), np.concatenate([labels for _, labels in dealt])


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts by label and answer, int64 [classes, classes]."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
