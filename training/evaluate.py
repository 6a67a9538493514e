"""Top-1 and top-5 of a network on a whole split."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from training.data import Split, batches, center_cut, in_order
from training.device import mixed_precision, pick_device, place
from training.model import AlexNet, Normalize

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


def evaluate(
    network: AlexNet, normalize: Normalize, split: Split, advance: Callable[[int], None] = lambda images: None
) -> Accuracy:
    """Accuracy on a whole split, one central crop an image; `advance` hears of each batch done."""
    device = pick_device()
    place(network, device)
    network.eval()
    normalize.to(device)
    scores = []
    chunks = in_order(len(split.labels), BATCH)
    for images, labels in batches(split, chunks, center_cut(network.config.input_size)):
        with torch.inference_mode(), mixed_precision(device):
            logits = network(normalize(torch.from_numpy(images).to(device)))
        scores.append(logits.float().cpu().numpy())
        advance(len(labels))
    return accuracy(np.concatenate(scores), split.labels)
