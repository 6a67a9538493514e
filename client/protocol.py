"""What is asked of Triton and what it answers, whichever protocol carries it.

KServe's predict protocol v2, with Triton's extensions for binary data and classification:
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from alexnet_triton.client.errors import ClassifierError, SignatureMismatch

Json = Mapping[str, Any]
WANTED = "an image classifier has one input, BYTES [1] or UINT8 [H, W, 3], and one output, FP32 [classes]"


@dataclass(frozen=True, slots=True)
class Label:
    """One class of the answer. `probability` is in 0..1, to the six decimals that Triton prints."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went.

    Attributes:
        read_ms: reading the request's files, and decoding them if pixels are sent.
        wait_ms: pauses and attempts before the one that was answered.
        request_ms: the attempt that was answered, with the network and the server's queue.
        attempts: how often the request was sent.
        images: in the request.
        host: that answered.
    """

    read_ms: float = 0.0
    wait_ms: float = 0.0
    request_ms: float = 0.0
    attempts: int = 1
    images: int = 1
    host: str = ""


@dataclass(frozen=True, slots=True)
class Classification:
    """One image's classes, the most probable first.

    Attributes:
        path: as it was given, None for an image that came as bytes, array or Pillow image.
        version: of the model that answered.
        ms: from sending the request that carried this image to its answer.
    """

    path: str | None
    model: str
    version: str
    top: tuple[Label, ...]
    ms: float
    timing: Timing = field(default_factory=Timing, compare=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """One image that could not be classified, in its place among the results."""

    path: str | None
    error: ClassifierError


Result = Classification | Failure


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One batch of images for one model; `data` is the input tensor's raw bytes."""

    model: str
    version: str
    input: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes
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
    """One server over one protocol. Every call has a deadline and raises only `ServerError`."""

    host: str

    async def ready(self, model: str, version: str, timeout_s: float) -> None:
        """Return when the server and the model are ready, else raise NotReady, or why it cannot be known."""

    async def server_metadata(self, timeout_s: float) -> Json:
        """`name`, `version` and `extensions` of the server."""

    async def model_versions(self, model: str, timeout_s: float) -> Sequence[str]:
        """The versions of a model that are ready."""

    async def model_config(self, model: str, version: str, timeout_s: float) -> Json:
        """The model's configuration, with the names of model_config.proto."""

    async def index(self, timeout_s: float) -> Sequence[Json]:
        """`name`, `version`, `state` and `reason` of every model in the repository."""

    async def statistics(self, timeout_s: float) -> Sequence[Json]:
        """Counts and nanoseconds of every model, with the names of ModelStatistics."""

    async def infer(self, request: InferRequest, timeout_s: float) -> InferReply:
        """Run the model."""

    async def close(self) -> None:
        """Cancel what is in flight and drop the connections."""


@dataclass(frozen=True, slots=True)
class Signature:
    """An image classifier's tensors.

    Attributes:
        kind: `encoded` for BYTES [N, 1], `pixels` for UINT8 [N, size, size, 3].
        size: side in pixels, 0 for encoded.
        max_batch: images a request may hold.
    """

    kind: Literal["encoded", "pixels"]
    input: str
    size: int
    output: str
    classes: int
    max_batch: int

    @property
    def datatype(self) -> str:
        """The input's, as the protocol names it."""
        return "BYTES" if self.kind == "encoded" else "UINT8"

    def shape(self, images: int) -> tuple[int, ...]:
        """The input's shape for a number of images."""
        return (images, 1) if self.kind == "encoded" else (images, self.size, self.size, 3)


def read_signature(config: Json, host: str) -> Signature:
    """Read a model's configuration, as `Transport.model_config` gives it.

    Raises:
        SignatureMismatch: the model is no image classifier; the message says what it has.
    """
    inputs, outputs = config.get("input", ()), config.get("output", ())
    max_batch = int(config.get("max_batch_size", 0))
    if len(inputs) == len(outputs) == 1 and max_batch > 0 and len(_dims(outputs[0])) == 1:
        kind = _kind(inputs[0])
        if kind and outputs[0].get("data_type") == "TYPE_FP32":
            size = _dims(inputs[0])[0] if kind == "pixels" else 0
            return Signature(kind, inputs[0]["name"], size, outputs[0]["name"], _dims(outputs[0])[0], max_batch)
    batch = f"batches of {max_batch}" if max_batch else "no batches"
    has = f"it takes {_describe(inputs)} and gives {_describe(outputs)}, {batch}"
    raise SignatureMismatch(has, host, config.get("name", ""), WANTED)


def _kind(tensor: Json) -> Literal["encoded", "pixels"] | None:
    dims, datatype = _dims(tensor), tensor.get("data_type")
    if datatype == "TYPE_STRING" and dims == [1]:
        return "encoded"
    if datatype == "TYPE_UINT8" and len(dims) == 3 and dims[0] == dims[1] > 0 and dims[2] == 3:
        return "pixels"
    return None


def _dims(tensor: Json) -> list[int]:
    return [int(size) for size in tensor.get("dims", ())]


def _describe(tensors: Sequence[Json]) -> str:
    names = [f"{each['name']} {each.get('data_type', '').removeprefix('TYPE_')} {_dims(each)}" for each in tensors]
    return ", ".join(names) or "nothing"


def parse_bytes(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor as text; `common.infer_request.bytes_tensor` is the inverse.

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
        ValueError: another text, or a value that is no probability.
    """
    value, index, *label = text.split(":", 2)
    probability = float(value)
    if not -1e-6 <= probability <= 1 + 1e-6:
        raise ValueError(f"{value} is no probability")
    return Label(label[0] if label else index, int(index), min(1.0, max(0.0, probability)))
