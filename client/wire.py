"""What is asked of Triton and what it answers, whichever protocol carries it.

KServe's predict protocol v2, with Triton's extensions for binary data and classification:
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from client.results import Label

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Where in a registered region an input lies."""

    region: str
    byte_size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One batch of images for one model; `data` is the tensor's raw bytes, or where they lie."""

    model: str
    version: str
    input: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | SharedMemory
    output: str
    class_count: int
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferReply:
    """`classes` holds the images' classes one image after the other, each as Triton's `value:index:label`."""

    model: str
    version: str
    classes: Sequence[str]


class Transport(Protocol):
    """One server over one protocol. Every call has a deadline and raises `ServerError` alone."""

    host: str

    async def ready(self, model: str, version: str, timeout_s: float) -> None:
        """Return when the server and the model are ready, else raise NotReady or why it cannot be known."""

    async def server_metadata(self, timeout_s: float) -> Json:
        """`name`, `version` and `extensions` of the server."""

    async def model_metadata(self, model: str, version: str, timeout_s: float) -> Json:
        """`versions`, `inputs` and `outputs` of a model, shapes with the batch dimension."""

    async def model_config(self, model: str, version: str, timeout_s: float) -> Json:
        """The model's configuration, in the names of model_config.proto."""

    async def index(self, timeout_s: float) -> Sequence[Json]:
        """`name`, `version`, `state` and `reason` of every model in the repository."""

    async def statistics(self, timeout_s: float) -> Sequence[Json]:
        """Counts and nanoseconds of every model, in the names of ModelStatistics."""

    async def register(self, name: str, key: str, byte_size: int, timeout_s: float) -> None:
        """Make a system shared memory region known to the server."""

    async def unregister(self, name: str, timeout_s: float) -> None:
        """Let the server forget a region."""

    async def infer(self, request: InferRequest, timeout_s: float) -> InferReply:
        """Run the model."""

    async def close(self) -> None:
        """Drop the connection."""


def serialize_bytes(elements: Sequence[bytes]) -> bytes:
    """Elements of a BYTES tensor: each after its length in 4 bytes, little-endian."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def parse_bytes(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor as text.

    Raises:
        ValueError: the lengths do not fit the data.
    """
    elements, start = [], 0
    while start < len(raw):
        if start + 4 > len(raw):
            raise ValueError("a length is cut off")
        (length,) = struct.unpack_from("<I", raw, start)
        start += 4 + length
        if start > len(raw):
            raise ValueError("an element is cut off")
        elements.append(raw[start - length : start].decode())
    return elements


def parse_label(text: str) -> Label:
    """One `value:index:label` of the classification extension; a model without labels leaves the last part out.

    Raises:
        ValueError: it is none.
    """
    value, index, *label = text.split(":", 2)
    probability = float(value)
    if not -1e-6 <= probability <= 1 + 1e-6:
        raise ValueError(f"{value} is no probability")
    return Label(label[0] if label else index, int(index), min(1.0, max(0.0, probability)))
