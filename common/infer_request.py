"""One inference request in Triton's binary HTTP form (KServe v2 with the binary data extension).

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

HEADER_LENGTH = "Inference-Header-Content-Length"


def infer_path(model: str, version: str = "") -> str:
    """The path that a request for a model is posted to."""
    return f"/v2/models/{quote(model, safe='')}{f'/versions/{version}' if version else ''}/infer"


def bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """The data of a BYTES tensor: each element behind its length, 4 bytes little-endian."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


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
