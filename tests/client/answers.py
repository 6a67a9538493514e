"""What the tests' network says, by PyTorch and without any server."""

import numpy as np
import torch

from alexnet_triton.client import Classification
from alexnet_triton.imaging import decode
from linear_network import features, parameters


def by_torch(encoded: bytes) -> np.ndarray:
    """Probabilities [classes] of an image file."""
    weight, bias = map(torch.from_numpy, parameters())
    pooled = torch.from_numpy(features(decode(encoded, 227)[None]))
    return torch.softmax(torch.nn.functional.linear(pooled, weight, bias), dim=1)[0].numpy()


def agree(result: object, expected: np.ndarray) -> bool:
    """Same classes in the same order, probabilities to Triton's six decimals and float32's rounding."""
    if not isinstance(result, Classification):
        return False
    order = np.argsort(-expected)[: len(result.top)]
    got = [label.probability for label in result.top]
    return [label.index for label in result.top] == list(order) and np.allclose(got, expected[order], atol=3e-6)
