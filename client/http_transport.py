"""Triton over HTTP, on aiohttp.

The framing is written here and not taken from tritonclient, whose HTTP client drops the headers of an
answer, Retry-After among them, and takes twice the time to import.
"""

import asyncio
import io
import json
import os
import zlib
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp

from alexnet_triton.client import errors
from alexnet_triton.client.config import Address, Config
from alexnet_triton.client.errors import BUSY, BadAnswer, ModelNotFound, NotReady, RequestRefused, Unreachable, one_line
from alexnet_triton.client.protocol import InferReply, InferRequest, Json, SharedMemory
from alexnet_triton.client.tls import explain, make_context

# WAS alexnet_triton.client.http_transport: HTTP statuses and aiohttp's errors as this package's exceptions.


def translate(error: Exception, host: str, model: str, timeout_s: float) -> errors.ServerError:
    """The exception to raise for a request that got no answer."""
    if isinstance(error, asyncio.TimeoutError):
        return errors.DeadlineExceeded(f"no answer within {timeout_s:.3g} s", host, model)
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)):
        return errors.TlsError(one_line(str(error)), host)
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ClientResponseError)):
        return errors.BadAnswer(f"the answer is no HTTP or was cut off ({type(error).__name__})", host, model)
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.Unreachable(f"cannot connect: {_reason(error.os_error)}", host)
    return errors.Unreachable(f"the connection broke: {one_line(str(error)) or type(error).__name__}", host)


def _reason(error: OSError) -> str:
    """The system's words, which asyncio replaces by its own."""
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return one_line(error.strerror or str(error)) or "the connection was closed"


def refusal(status: int, content: bytes, retry_after: str | None, host: str, model: str) -> errors.ServerError:
    """The exception to raise for an answer that is not 200."""
    detail = _message(status, content)
    if status == 400 and b"SSL certificate" in content:  # nginx's page
        return errors.TlsError("it wants a client certificate, or another one", host)
    if status == 429 or (status == 503 and (BUSY.search(detail) or retry_after)):
        return errors.Overloaded(detail, host, model, parse_retry_after(retry_after))
    if status >= 500:
        return _SERVER_SIDE.get(status, errors.ServerFault)(detail, host, model)
    return _CALLER_SIDE.get(status, errors.BadAnswer)(detail, host, model)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _message(status: int, content: bytes) -> str:
    try:
        return one_line(str(json.loads(content)["error"]))
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}"


_SERVER_SIDE: dict[int, type[errors.ServerError]] = {
    502: errors.Unreachable,
    503: errors.NotReady,
    504: errors.Unreachable,
}
_CALLER_SIDE: dict[int, type[errors.ServerError]] = {
    400: errors.RequestRefused,
    401: errors.AccessDenied,
    403: errors.AccessDenied,
    404: errors.ModelNotFound,
    405: errors.Unsupported,
    408: errors.Unreachable,
    413: errors.RequestRefused,
    414: errors.RequestRefused,
    415: errors.Unsupported,
    422: errors.Unsupported,
}


# What aiohttp sends piece by piece when it is given as a stream, and in one go, holding up all else, as bytes.
LARGE_BYTES = 1 << 20
HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpTransport:
    """One pool of connections, which all calls share."""

    def __init__(self, address: Address, config: Config) -> None:
        """Must be made in the event loop that will use it."""
        self.host = address.authority
        self._address, self._tls = address, config.tls
        self._unproven = address.secure  # until a first answer came over TLS
        self._base, self._compress = f"{address}/v2", config.compress
        connector = aiohttp.TCPConnector(limit=0, ssl=make_context(config.tls) if address.secure else False)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=dict(config.headers),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def ready(self, model: str, version: str, timeout_s: float) -> None:
        """As `Transport.ready`."""
        await self._ready("/health/ready", "the server", timeout_s)
        if model:
            await self._ready(f"{_model_path(model, version)}/ready", "the model", timeout_s, model)

    async def server_metadata(self, timeout_s: float) -> Json:
        """As `Transport.server_metadata`."""
        return await self._json("GET", "", timeout_s)

    async def model_metadata(self, model: str, version: str, timeout_s: float) -> Json:
        """As `Transport.model_metadata`."""
        return await self._json("GET", _model_path(model, version), timeout_s, model=model)

    async def model_config(self, model: str, version: str, timeout_s: float) -> Json:
        """As `Transport.model_config`."""
        return await self._json("GET", f"{_model_path(model, version)}/config", timeout_s, model=model)

    async def index(self, timeout_s: float) -> Sequence[Json]:
        """As `Transport.index`."""
        return await self._json("POST", "/repository/index", timeout_s, b"{}")

    async def statistics(self, timeout_s: float) -> Sequence[Json]:
        """As `Transport.statistics`."""
        return (await self._json("GET", "/models/stats", timeout_s))["model_stats"]

    async def register(self, name: str, key: str, byte_size: int, timeout_s: float) -> None:
        """As `Transport.register`."""
        body = json.dumps({"key": key, "offset": 0, "byte_size": byte_size}).encode()
        await self._json("POST", f"/systemsharedmemory/region/{quote(name)}/register", timeout_s, body)

    async def unregister(self, name: str, timeout_s: float) -> None:
        """As `Transport.unregister`."""
        await self._json("POST", f"/systemsharedmemory/region/{quote(name)}/unregister", timeout_s, b"{}")

    async def infer(self, request: InferRequest, timeout_s: float) -> InferReply:
        """As `Transport.infer`."""
        body, headers = self._pack(request)
        path = f"{_model_path(request.model, request.version)}/infer"
        answer = await self._json("POST", path, timeout_s, body, headers, request.model)
        try:
            return read_reply(answer, request.output)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadAnswer(f"unreadable answer: {error!r}", self.host, request.model) from None

    async def close(self) -> None:
        """Drop the connections."""
        await self._session.close()

    async def _ready(self, path: str, what: str, timeout_s: float, model: str = "") -> None:
        try:
            await self._json("GET", path, timeout_s, model=model)
        except (RequestRefused, ModelNotFound):  # Triton says "no" with status 400
            raise NotReady(f"{what} is not ready", self.host, model) from None

    def _pack(self, request: InferRequest) -> tuple[bytes, dict[str, str]]:
        header, data = build_request(request)
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        body = header + data
        if self._compress:
            headers["Content-Encoding"] = self._compress
            body = _compressed(body, self._compress)
        return body, headers

    async def _json(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        model: str = "",
    ) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        data = io.BytesIO(body) if body and len(body) > LARGE_BYTES else body
        try:
            async with self._session.request(
                method, self._base + path, data=data, headers=headers, timeout=timeout
            ) as response:
                content, status = await response.read(), response.status
                retry_after = response.headers.get("Retry-After")
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            failure = translate(error, self.host, model, timeout_s)
            if self._unproven and isinstance(failure, Unreachable):
                failure = await explain(self._address, self._tls, timeout_s) or failure
            raise failure from None
        self._unproven = False
        if status != 200:
            raise refusal(status, content, retry_after, self.host, model)
        return self._parse(content, model)

    def _parse(self, content: bytes, model: str) -> Any:
        if not content:
            return {}
        try:
            return json.loads(content)
        except ValueError:
            raise BadAnswer(f"the answer is not JSON: {content[:40]!r}", self.host, model) from None


def build_request(request: InferRequest) -> tuple[bytes, bytes]:
    """The JSON header and the binary part of a request's body."""
    if isinstance(request.data, SharedMemory):
        where: dict[str, str | int] = {
            "shared_memory_region": request.data.region,
            "shared_memory_byte_size": request.data.byte_size,
            "shared_memory_offset": request.data.offset,
        }
        data = b""
    else:
        where, data = {"binary_data_size": len(request.data)}, request.data
    tensor = {"name": request.input, "datatype": request.datatype, "shape": request.shape, "parameters": where}
    output = {"name": request.output, "parameters": {"classification": request.class_count, "binary_data": False}}
    header = {"inputs": [tensor], "outputs": [output], "parameters": dict(request.parameters)}
    return json.dumps(header).encode(), data


def read_reply(answer: Json, output: str) -> InferReply:
    """From JSON.

    Raises:
        ValueError: without the output.
    """
    for tensor in answer["outputs"]:
        if tensor["name"] == output and tensor["datatype"] == "BYTES":
            return InferReply(answer["model_name"], answer["model_version"], list(map(str, tensor["data"])))
    raise ValueError(f"without the classes of output {output!r}")


def _model_path(model: str, version: str) -> str:
    return f"/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _compressed(body: bytes, algorithm: str) -> bytes:
    packer = zlib.compressobj(wbits=31 if algorithm == "gzip" else 15)
    return packer.compress(body) + packer.flush()
