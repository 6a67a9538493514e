"""What a model takes and gives, read from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from client.errors import SignatureMismatch
from client.wire import Json

WANTED = "an image classifier has one input, BYTES [1] or UINT8 [H, W, 3], and one output, FP32 [classes]"


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
        """In the protocol's names."""
        return "BYTES" if self.kind == "encoded" else "UINT8"

    def shape(self, images: int) -> tuple[int, ...]:
        """The input's shape for a number of images."""
        return (images, 1) if self.kind == "encoded" else (images, self.size, self.size, 3)


def read_signature(config: Json, host: str) -> Signature:
    """From a model's configuration as `Transport.model_config` gives it.

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


def _describe(tensors: Sequence[Any]) -> str:
    names = [f"{each['name']} {each.get('data_type', '').removeprefix('TYPE_')} {_dims(each)}" for each in tensors]
    return ", ".join(names) or "nothing"
