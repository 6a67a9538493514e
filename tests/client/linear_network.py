"""The tests' network: colours pooled to 8 x 8, one linear layer, softmax; seeded, so that anyone can repeat it."""

import numpy as np

CLASSES = 10
GRID = 8


def parameters() -> tuple[np.ndarray, np.ndarray]:
    """Weight [classes, 192] and bias [classes], float32."""
    random = np.random.default_rng(2012)
    weight = random.normal(0, 3 / GRID, (CLASSES, 3 * GRID * GRID)).astype(np.float32)
    return weight, random.normal(0, 0.1, CLASSES).astype(np.float32)


def probabilities(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] to float32 [N, classes]."""
    weight, bias = parameters()
    logits = features(images) @ weight.T + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def features(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] to float32 [N, 192]: the means of an 8 x 8 grid, centred."""
    side = images.shape[1] // GRID * GRID
    cells = images[:, :side, :side].astype(np.float32).reshape(len(images), GRID, side // GRID, GRID, side // GRID, 3)
    return cells.mean(axis=(2, 4)).reshape(len(images), -1) / 127.5 - 1
