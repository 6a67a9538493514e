"""Answers compared with their labels: top-k accuracy, cross-entropy, confusion. Needs numpy, not torch."""

from dataclasses import dataclass

import numpy as np


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
