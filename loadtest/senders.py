"""Many requests at small cost, over HTTP/1.1 and gRPC.

Over HTTP: kept connections, one request at a time on each, answers by callback. aiohttp takes about three times the
processor time a request, which at 3,000 a second is the whole core. Over gRPC: calls of grpc.aio, each of which costs
several times what an HTTP request does.
"""

import asyncio
import json
import ssl
import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from alexnet_triton.client import grpc_transport, http_transport
from alexnet_triton.client.tls import make_context, pem
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.workload import TIMEOUT, Answer, Done, Request, RequestFault

WARM_CONNECTIONS = 8
SWEEP_S = 0.1


class HttpSender:
    """Sends to one server over at most `connections`; what finds none free waits for one."""

    def __init__(self, target: Target, connections: int, timeout_s: float, done: Done) -> None:
        self._target, self._most, self._timeout_s, self._done = target, connections, timeout_s, done
        self._in_flight: dict[Request, None] = {}
        self._all: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[Request] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self.delayed = 0  # requests that found every connection taken
        self._tls = make_context(target.config.tls) if target.address.secure else None

    async def start(self) -> None:
        """Open a few connections, so that the first requests do not pay for them."""
        self._sweeping = asyncio.create_task(self._sweep())
        await asyncio.gather(*(self._open() for _ in range(min(WARM_CONNECTIONS, self._most))))

    def send(self, request: Request) -> None:
        """Send now, or as soon as a connection is free."""
        self._in_flight[request] = None
        if self._idle:
            self._idle.pop().send(request)
            return
        self._waiting.append(request)
        if len(self._all) + len(self._opening) < self._most:
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self.delayed += 1

    async def close(self) -> None:
        """Drop the connections."""
        tasks = (self._sweeping, *self._opening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in tuple(self._all):
            connection.drop()
        while self._all:
            await asyncio.sleep(0)

    def free(self, connection: "_Connection") -> None:
        """A connection has nothing to do. What was given up while it waited is not sent any more."""
        while self._waiting and self._waiting[0].finished:
            self._waiting.popleft()
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def answered(self, request: Request, answer: Answer) -> None:
        """Hand on an answer, unless the request was given up before."""
        if not request.finished:
            request.finished = True
            del self._in_flight[request]
            self._done(request, answer)

    async def _open(self) -> None:
        address, loop = self._target.address, asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self, self._target.signature.output), address.host, address.port, ssl=self._tls
            )
        except (OSError, ssl.SSLError) as error:
            if self._waiting:
                self.answered(self._waiting.popleft(), RequestFault("no connection", error.strerror or str(error)))
            return
        self._all.add(connection)
        self.free(connection)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for request in self._late(time.perf_counter() - self._timeout_s):
                self.answered(request, RequestFault(TIMEOUT, f"no answer within {self._timeout_s:g} s"))

    def _late(self, given_up_s: float) -> tuple[Request, ...]:
        """Requests that were intended before a moment: the oldest, which stand first, as they are sent in order."""
        return tuple(takewhile(lambda request: request.intended_s < given_up_s, self._in_flight))


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, sender: HttpSender, output: str) -> None:
        self._sender, self._output = sender, output
        self._request: Request | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(1 << 24)

    def send(self, request: Request) -> None:
        self._request, self._received = request, b""
        self._transport.write(request.data)

    def drop(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        try:
            whole = split_response(self._received)
        except ValueError as error:
            self._finish(RequestFault("unreadable answer", str(error)))
            return self.drop()
        if whole:
            status, body, keep = whole
            request = self._finish(read_answer(status, body, self._output), keep)
            if not keep or request is None:
                self.drop()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self._sender.lost(self)
        self._finish(RequestFault("connection lost", str(error or "closed by the server")), keep=False)

    def _finish(self, answer: Answer, keep: bool = False) -> Request | None:
        request, self._request = self._request, None
        if request is not None:
            self._sender.answered(request, answer)
            if keep:
                self._sender.free(self)
        return request


def split_response(received: bytes) -> tuple[int, bytes, bool] | None:
    """Status, body, and whether the connection is kept; None while some of it is missing (RFC 9112, 6).

    Raises:
        ValueError: no HTTP/1.1 response, or one without Content-Length.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > 1 << 16:
            raise ValueError("the head of the response has no end")
        return None
    start, *lines = received[:end].split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if not start.startswith(b"HTTP/1.") or b"content-length" not in headers:
        raise ValueError("no HTTP/1.1 response with Content-Length")
    body = received[end + 4 :]
    if len(body) < int(headers[b"content-length"]):
        return None
    return int(start.split(b" ", 2)[1]), body, headers.get(b"connection", b"").lower() != b"close"


def read_answer(status: int, body: bytes, output: str) -> Answer:
    """The classes in a response, or what it refuses with."""
    if status != 200:
        return RequestFault(f"HTTP {status}", _reason(body))
    try:
        return http_transport.read_reply(json.loads(body), output).classes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return RequestFault("unreadable answer", repr(error))


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:100].decode(errors="replace")


# ---- gRPC

CHANNELS = 4  # a connection each: one alone is bound by its flow control
METHOD = "/inference.GRPCInferenceService/ModelInfer"


class GrpcSender:
    """Sends to one server; `delayed` stays 0, as HTTP/2 bounds nothing here."""

    def __init__(self, target: Target, timeout_s: float, done: Done) -> None:
        config = target.config
        self._output, self._done, self._timeout_s = target.signature.output, done, timeout_s
        self._metadata = tuple((name.lower(), value) for name, value in config.headers.items())
        self._channels = [_open(target) for _ in range(CHANNELS)]
        # The message is serialized already; answers are parsed here.
        self._calls: list[Callable[..., Any]] = [channel.unary_unary(METHOD) for channel in self._channels]
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0
        self.delayed = 0

    async def start(self) -> None:
        """Connect."""
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    def send(self, request: Request) -> None:
        """Send now."""
        self._turn = (self._turn + 1) % CHANNELS
        task = asyncio.get_running_loop().create_task(self._ask(self._calls[self._turn], request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what is in flight and drop the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))
        self._calls.clear()  # gRPC's poller thread lives until the last reference to a channel is gone
        self._channels.clear()

    async def _ask(self, call: Callable[..., Any], request: Request) -> None:
        self._done(request, await self._answer(call, request))

    async def _answer(self, call: Callable[..., Any], request: Request) -> Answer:
        left_s = max(0.0, request.intended_s + self._timeout_s - time.perf_counter())
        try:
            raw = await call(request.data, timeout=left_s, metadata=self._metadata)
            return grpc_transport.read_reply(pb.ModelInferResponse.FromString(raw), self._output).classes
        except grpc.aio.AioRpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return RequestFault(TIMEOUT if late else f"gRPC {error.code().name}", error.details() or "")
        except (DecodeError, ValueError) as error:
            return RequestFault("unreadable answer", str(error))


def _open(target: Target) -> grpc.aio.Channel:
    address = target.address
    if not address.secure:
        return grpc.aio.insecure_channel(address.authority, options=grpc_transport.CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(*pem(target.config.tls))
    return grpc.aio.secure_channel(address.authority, credentials, options=grpc_transport.CHANNEL_OPTIONS)
