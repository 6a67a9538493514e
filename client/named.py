"""An image that is read by a function of its own."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Named:
    """`read` returns the bytes of an image file or raises BadImage; `path` is what results call it."""

    path: str
    read: Callable[[], bytes]
