"""Requests over gRPC, as calls of grpc.aio. A call costs several times what an HTTP request of `http_sender` does."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from alexnet_triton.client.grpc_transport import CHANNEL_OPTIONS, read_reply
from alexnet_triton.client.tls import pem
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.workload import TIMEOUT, Answer, Done, Request, RequestFault

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
            return read_reply(pb.ModelInferResponse.FromString(raw), self._output).classes
        except grpc.aio.AioRpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return RequestFault(TIMEOUT if late else f"gRPC {error.code().name}", error.details() or "")
        except (DecodeError, ValueError) as error:
            return RequestFault("unreadable answer", str(error))


def _open(target: Target) -> grpc.aio.Channel:
    address = target.address
    if not address.secure:
        return grpc.aio.insecure_channel(address.authority, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(*pem(target.config.tls))
    return grpc.aio.secure_channel(address.authority, credentials, options=CHANNEL_OPTIONS)
