"""Candidate against reference on real images."""

import numpy as np

from export.errors import AccuracyError
from export.runners import Runner

BATCHES = (1, 2, 7, 32)
TOLERANCE = 1e-5


def check_batches(
    candidate: Runner, reference: Runner, images: np.ndarray, tolerance: float = TOLERANCE
) -> dict[int, float]:
    """The largest probability difference at each of `BATCHES`, over all of `images`, uint8 [N, S, S, 3].

    Raises:
        AccuracyError: it is above `tolerance`, or the shapes differ.
    """
    expected = run_in_batches(reference, images, max(BATCHES))
    differences = {}
    for batch in BATCHES:
        answer = run_in_batches(candidate, images, batch)
        if answer.shape != expected.shape:
            raise AccuracyError(f"batch {batch}: shape {answer.shape} where the reference gives {expected.shape}")
        differences[batch] = float(np.abs(answer - expected).max())
    worst = max(differences.values())
    if not worst <= tolerance:
        raise AccuracyError(f"probabilities differ by {worst:.2e} from the reference's, more than {tolerance:.0e}")
    return differences


def run_in_batches(runner: Runner, images: np.ndarray, batch: int) -> np.ndarray:
    """All of `images` through a runner, `batch` at a time: float32 [N, classes]."""
    return np.concatenate([runner(images[start : start + batch]) for start in range(0, len(images), batch)])
