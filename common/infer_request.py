"""One inference request in Triton's binary HTTP form (KServe v2 with the binary data extension).

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

HEADER_LENGTH = "Inference-Header-Content-Length"


def model_path(model: str, version: str = "") -> str:
    """A model's path on the server; without a version the server chooses one."""
    chosen = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(model, safe='')}{chosen}"


def infer_path(model: str, version: str = "") -> str:
    """The path that a request for a model is posted to."""
    return f"{model_path(model, version)}/infer"


def bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """The data of a BYTES tensor: each element behind its length, 4 bytes little-endian."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def build_header(
    tensor: Mapping[str, Any], byte_size: int, output: Mapping[str, Any], parameters: Mapping[str, Any] | None = None
) -> bytes:
    """The JSON in front of the tensor's bytes. The header HEADER_LENGTH names its length.

    Args:
        tensor: `name`, `datatype` and `shape` of the input.
        byte_size: of the input's data.
        output: the output's `name`, and `parameters` where there are any.
        parameters: of the request, such as `priority`.
    """
    inputs = [{**tensor, "parameters": {"binary_data_size": byte_size}}]
    return json.dumps({"inputs": inputs, "outputs": [output], "parameters": dict(parameters or {})}).encode()
