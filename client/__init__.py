"""Classify images with AlexNet on a Triton server.

from client import Classifier

with Classifier("grpc://127.0.0.1:8001") as classifier:
    print(classifier.classify("photo.jpg").top[0])
"""

from typing import TYPE_CHECKING

from alexnet_triton.client.errors import BadImage, ClassifierError, ServerError, UsageError
from alexnet_triton.client.protocol import Classification, Failure, Label

if TYPE_CHECKING:
    from alexnet_triton.client.classifier import AsyncClassifier, Classifier
    from alexnet_triton.client.config import Config, Tls


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

_HOMES = {
    "AsyncClassifier": "alexnet_triton.client.classifier",
    "Classifier": "alexnet_triton.client.classifier",
    "Config": "alexnet_triton.client.config",
    "Tls": "alexnet_triton.client.config",
}


def __getattr__(name: str) -> object:
    # asyncio and the protocols are loaded when they are asked for: `--help` needs neither.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
