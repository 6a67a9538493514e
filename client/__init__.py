"""Classify images with AlexNet on a Triton server.

from alexnet_triton.client import Classifier

with Classifier("grpc://127.0.0.1:8001") as classifier:
    print(classifier.classify("photo.jpg").top[0])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from alexnet_triton.client.config import Config, Tls
from alexnet_triton.client.errors import BadImage, ClassifierError, ServerError, UsageError
from alexnet_triton.client.protocol import Classification, Failure, Label

if TYPE_CHECKING:
    from alexnet_triton.client.classifier import AsyncClassifier, Classifier

__all__ = [
    "AsyncClassifier",
    "BadImage",
    "Classification",
    "Classifier",
    "ClassifierError",
    "Config",
    "Failure",
    "Label",
    "ServerError",
    "Tls",
    "UsageError",
]


def __getattr__(name: str) -> object:
    """Load the classifiers when they are asked for: asyncio, numpy and Pillow take a while, `--help` needs none."""
    if name in ("AsyncClassifier", "Classifier"):
        return getattr(import_module("alexnet_triton.client.classifier"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
