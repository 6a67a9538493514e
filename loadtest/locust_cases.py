"""Images and right answers for Locust's users, learned over plain HTTP: asyncio and gevent do not go together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from client.address import Address
from client.config import Config, Send
from client.errors import ModelNotFound, Unreachable
from client.http_errors import refusal
from client.http_transport import HEADER_LENGTH, build_request, read_reply
from client.signature import Signature, read_signature
from client.wire import InferRequest, parse_label, serialize_bytes
from loadtest.cases import Case, Target, find_images, load_images, read_answers, right_classes


@dataclass(frozen=True)
class Settings:
    """What the users' options say."""

    address: Address
    images: Path
    limit: int
    answers: Path | None
    seed: int = 0


def load_cases(settings: Settings, send: Send) -> tuple[Target, list[Case]]:
    """The target and the cases for `encoded` or `pixels`.

    Raises:
        SettingError: the images, or the file of answers.
        ServerError: the server cannot be asked, or the model is none for images.
    """
    config = Config(urls=(str(settings.address),), send=send)
    paths = find_images(settings.images, settings.limit, settings.seed)
    asking = _Asking(settings.address)
    described = asking.get(f"/v2/models/{config.model_name}/config", config.model_name)
    signature = read_signature(described, settings.address.authority)
    images = load_images(paths, signature)
    tensors = [serialize_bytes([image]) if signature.kind == "encoded" else image for image in images]
    if settings.answers:
        right = read_answers(settings.answers, paths)
    else:
        right = [asking.classify(config.model_name, signature, tensor) for tensor in tensors]
    names = [str(path.relative_to(settings.images)) for path in paths]
    return Target(config, signature, config.model_name, ""), list(map(Case, names, tensors, right))


class _Asking:
    def __init__(self, address: Address) -> None:
        self._address = address
        kind = HTTPSConnection if address.secure else HTTPConnection
        self._connection = kind(address.host, address.port, timeout=30)

    def get(self, path: str, model: str) -> Mapping[str, Any]:
        return self._ask("GET", path, b"", {}, model)

    def classify(self, model: str, signature: Signature, tensor: bytes) -> frozenset[int]:
        count = min(2, signature.classes)
        tensors = (signature.input, signature.datatype, signature.shape(1), tensor, signature.output)
        header, data = build_request(InferRequest(model, "", *tensors, class_count=count))
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        answer = self._ask("POST", f"/v2/models/{model}/infer", header + data, headers, model)
        return right_classes([parse_label(text) for text in read_reply(answer, signature.output).classes])

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str], model: str) -> Mapping[str, Any]:
        try:
            self._connection.request(method, self._address.prefix + path, body, dict(headers))
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            raise Unreachable(str(error).lower() or type(error).__name__, self._address.authority) from None
        if response.status == 400 and method == "GET":
            raise ModelNotFound(json.loads(content)["error"], self._address.authority, model)
        if response.status != 200:
            raise refusal(response.status, content, None, self._address.authority, model)
        return json.loads(content)
