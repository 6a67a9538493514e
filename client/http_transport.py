"""Triton over HTTP, on aiohttp.

tritonclient's HTTP client is not used: it drops the headers of an answer, Retry-After among them, and takes twice the
time to import.
"""

import asyncio
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from alexnet_triton.client import errors
from alexnet_triton.client.config import Address, Config
from alexnet_triton.client.protocol import InferReply, InferRequest, Json, Transport
from alexnet_triton.client.servers import parse_retry_after
from alexnet_triton.client.tls import explain, make_context
from alexnet_triton.common.infer_request import HEADER_LENGTH, build_header, infer_path, model_path

# aiohttp sends bytes in one go, which holds up all other requests, and a stream piece by piece.
LARGE_BYTES = 1 << 20


class HttpTransport(Transport):
    """One pool of connections, which all calls share."""

    def __init__(self, address: Address, config: Config) -> None:
        """Must be made in the event loop that will use it."""
        self.host = address.authority
        self._address, self._tls = address, config.tls
        self._unproven = address.secure  # until a first answer came over TLS
        connector = aiohttp.TCPConnector(limit=0, ssl=make_context(config.tls) if address.secure else False)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=dict(config.headers), cookie_jar=aiohttp.DummyCookieJar()
        )

    async def ready(self, model: str, version: str, timeout_s: float) -> None:
        await self._ready("/v2/health/ready", "the server", timeout_s)
        if model:
            await self._ready(f"{model_path(model, version)}/ready", "the model", timeout_s, model)

    async def server_metadata(self, timeout_s: float) -> Json:
        return await self._json("/v2", timeout_s)

    async def model_versions(self, model: str, timeout_s: float) -> Sequence[str]:
        return (await self._json(model_path(model), timeout_s, model)).get("versions", [])

    async def model_config(self, model: str, version: str, timeout_s: float) -> Json:
        return await self._json(f"{model_path(model, version)}/config", timeout_s, model)

    async def index(self, timeout_s: float) -> Sequence[Json]:
        return await self._json("/v2/repository/index", timeout_s, body=b"{}")

    async def statistics(self, timeout_s: float) -> Sequence[Json]:
        return (await self._json("/v2/models/stats", timeout_s))["model_stats"]

    async def infer(self, request: InferRequest, timeout_s: float) -> InferReply:
        path = infer_path(request.model, request.version)
        answer = await self._json(path, timeout_s, request.model, *self._pack(request))
        try:
            return read_reply(answer, request.output)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.BadAnswer(f"unreadable answer: {error!r}", self.host, request.model) from None

    async def close(self) -> None:
        await self._session.close()

    async def _ready(self, path: str, what: str, timeout_s: float, model: str = "") -> None:
        try:
            await self._json(path, timeout_s, model)
        except (errors.RequestRefused, errors.ModelNotFound):  # Triton says "no" with status 400
            raise errors.NotReady(f"{what} is not ready", self.host, model) from None

    def _pack(self, request: InferRequest) -> tuple[bytes, dict[str, str]]:
        header, data = build_request(request)
        return header + data, {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}

    async def _json(
        self, path: str, timeout_s: float, model: str = "", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Any:
        method, url = "POST" if body else "GET", f"{self._address}{path}"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        data = io.BytesIO(body) if len(body) > LARGE_BYTES else body or None
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                content, status = await response.read(), response.status
                retry_after, location = response.headers.get("Retry-After"), response.headers.get("Location")
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            failure = translate(error, self.host, model, timeout_s)
            if self._unproven and isinstance(failure, errors.Unreachable):
                failure = await explain(self._address, self._tls, timeout_s) or failure
            raise failure from None
        self._unproven = False
        if location and 300 <= status < 400:  # never followed: the headers may hold a key
            detail = f"it redirects to {errors.one_line(location)}"
            raise errors.Unsupported(detail, self.host, model, "name that server with --url if it may have the headers")
        if status != 200:
            raise refusal(status, content, retry_after, self.host, model)
        try:
            return json.loads(content or b"{}")
        except ValueError:
            raise errors.BadAnswer(f"the answer is not JSON: {content[:40]!r}", self.host, model) from None


def build_request(request: InferRequest) -> tuple[bytes, bytes]:
    """The JSON header and the binary part of a request's body."""
    tensor = {"name": request.input, "datatype": request.datatype, "shape": request.shape}
    output = {"name": request.output, "parameters": {"classification": request.class_count, "binary_data": False}}
    return build_header(tensor, len(request.data), output, request.parameters), request.data


def read_reply(answer: Json, output: str) -> InferReply:
    """Read the JSON of an answer.

    Raises:
        ValueError: the output is not in it.
    """
    for tensor in answer["outputs"]:
        if tensor["name"] == output and tensor["datatype"] == "BYTES":
            return InferReply(answer["model_name"], answer["model_version"], list(map(str, tensor["data"])))
    raise ValueError(f"without the classes of output {output!r}")


def translate(error: Exception, host: str, model: str, timeout_s: float) -> errors.ServerError:
    """This package's exception for a request that got no answer."""
    if isinstance(error, asyncio.TimeoutError):
        return errors.DeadlineExceeded(f"no answer within {timeout_s:.3g} s", host, model)
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)):
        return errors.TlsError(errors.one_line(str(error)), host)
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ClientResponseError)):
        return errors.BadAnswer(f"the answer is not HTTP or was cut off ({type(error).__name__})", host, model)
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.Unreachable(f"cannot connect: {_reason(error.os_error)}", host)
    return errors.Unreachable(f"the connection broke: {errors.one_line(str(error)) or type(error).__name__}", host)


def _reason(error: OSError) -> str:
    """The system's own message; asyncio replaces it by another."""
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return errors.one_line(error.strerror or str(error)) or "the connection was closed"


def refusal(status: int, content: bytes, retry_after: str | None, host: str, model: str) -> errors.ServerError:
    """This package's exception for an answer whose status is not 200."""
    detail = _message(status, content)
    if status == 400 and b"SSL certificate" in content:  # nginx's page
        return errors.TlsError("it wants a client certificate, or another one", host)
    if status == 429 or (status == 503 and (errors.BUSY.search(detail) or retry_after)):
        return errors.Overloaded(detail, host, model, retry_after_s=parse_retry_after(retry_after))
    return _STATUSES.get(status, errors.ServerFault if status >= 500 else errors.BadAnswer)(detail, host, model)


_STATUSES: dict[int, type[errors.ServerError]] = {
    404: errors.ModelNotFound,
    503: errors.NotReady,
    **dict.fromkeys((400, 413, 414), errors.RequestRefused),
    **dict.fromkeys((401, 403), errors.AccessDenied),
    **dict.fromkeys((405, 415, 422), errors.Unsupported),
    **dict.fromkeys((408, 502, 504), errors.Unreachable),
}


def _message(status: int, content: bytes) -> str:
    try:
        return errors.one_line(str(json.loads(content)["error"]))
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}"
