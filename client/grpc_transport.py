"""Triton over gRPC, with the stubs that tritonclient carries."""

import math
import re
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from alexnet_triton.client import errors
from alexnet_triton.client.config import Address, Config
from alexnet_triton.client.protocol import InferReply, InferRequest, Json, Transport, parse_bytes
from alexnet_triton.client.servers import parse_retry_after
from alexnet_triton.client.tls import explain, pem

# A connection that died without a word is found out within 30 s while calls wait on it. Two pings at most
# between data: Triton's default takes more for an attack and closes the connection.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 2),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

# What Triton itself says with UNAVAILABLE; everything else with that code comes from the connection.
LOADING = re.compile(r"no available versions|not ready|unloaded|Stub process|stopping", re.IGNORECASE)
BROKEN = re.compile(r"RST_STREAM|Stream removed")  # gRPC's words, with INTERNAL, where an answer broke off
CONNECTING = "failed to connect to all addresses; last error: "
TLS = re.compile(r"ssl|tls|handshake|certificate", re.IGNORECASE)

# Sent by gRPC servers and gateways beside RESOURCE_EXHAUSTED and UNAVAILABLE:
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
PUSHBACK = "grpc-retry-pushback-ms"


class GrpcTransport(Transport):
    """One channel, which all calls share."""

    def __init__(self, address: Address, config: Config) -> None:
        """Must be made in the event loop that will use it."""
        self.host = address.authority
        self._address, self._tls = address, config.tls
        self._unproven = address.secure  # until a first answer came over TLS
        self._metadata = tuple((name.lower(), value) for name, value in config.headers.items())
        if address.secure:
            credentials = grpc.ssl_channel_credentials(*pem(config.tls))
            self._channel = grpc.aio.secure_channel(address.authority, credentials, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address.authority, options=CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ready(self, model: str, version: str, timeout_s: float) -> None:
        if not (await self._call(self._stub.ServerReady, pb.ServerReadyRequest(), timeout_s)).ready:
            raise errors.NotReady("the server is not ready", self.host)
        request = pb.ModelReadyRequest(name=model, version=version)
        if model and not (await self._call(self._stub.ModelReady, request, timeout_s, model)).ready:
            raise errors.NotReady("the model is not ready", self.host, model)

    async def server_metadata(self, timeout_s: float) -> Json:
        return _as_json(await self._call(self._stub.ServerMetadata, pb.ServerMetadataRequest(), timeout_s))

    async def model_versions(self, model: str, timeout_s: float) -> Sequence[str]:
        request = pb.ModelMetadataRequest(name=model)
        return list((await self._call(self._stub.ModelMetadata, request, timeout_s, model)).versions)

    async def model_config(self, model: str, version: str, timeout_s: float) -> Json:
        request = pb.ModelConfigRequest(name=model, version=version)
        return _as_json(await self._call(self._stub.ModelConfig, request, timeout_s, model)).get("config", {})

    async def index(self, timeout_s: float) -> Sequence[Json]:
        answer = _as_json(await self._call(self._stub.RepositoryIndex, pb.RepositoryIndexRequest(), timeout_s))
        return answer.get("models", [])

    async def statistics(self, timeout_s: float) -> Sequence[Json]:
        answer = _as_json(await self._call(self._stub.ModelStatistics, pb.ModelStatisticsRequest(), timeout_s))
        return answer.get("model_stats", [])

    async def infer(self, request: InferRequest, timeout_s: float) -> InferReply:
        answer = await self._call(self._stub.ModelInfer, build_request(request), timeout_s, request.model)
        try:
            return read_reply(answer, request.output)
        except ValueError as error:
            raise errors.BadAnswer(f"unreadable answer: {error}", self.host, request.model) from None

    async def close(self) -> None:
        await self._channel.close()
        # gRPC's poller thread lives until the last reference to a channel is gone.
        del self._channel, self._stub

    async def _call(self, method: Any, request: Message, timeout_s: float, model: str = "") -> Any:
        try:
            answer = await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            failure = translate(error, self.host, model, timeout_s)
            if self._unproven and isinstance(failure, errors.Unreachable):
                failure = await explain(self._address, self._tls, timeout_s) or failure
            raise failure from None
        except (DecodeError, grpc.aio.UsageError) as error:
            raise errors.ServerError(str(error), self.host, model) from None
        self._unproven = False
        return answer


def build_request(request: InferRequest) -> pb.ModelInferRequest:
    """The request as protobuf."""
    message = pb.ModelInferRequest(model_name=request.model, model_version=request.version)
    message.inputs.add(name=request.input, datatype=request.datatype, shape=request.shape)
    message.raw_input_contents.append(request.data)
    output = message.outputs.add(name=request.output)
    output.parameters["classification"].int64_param = request.class_count
    for name, value in request.parameters.items():
        message.parameters[name].int64_param = value
    return message


def read_reply(message: pb.ModelInferResponse, output: str) -> InferReply:
    """Read the protobuf of an answer.

    Raises:
        ValueError: the output is not in it, or is cut off.
    """
    for position, tensor in enumerate(message.outputs):
        if tensor.name != output or tensor.datatype != "BYTES":
            continue
        if tensor.contents.bytes_contents:
            classes = [element.decode() for element in tensor.contents.bytes_contents]
        elif position < len(message.raw_output_contents):
            classes = parse_bytes(message.raw_output_contents[position])
        else:
            break
        return InferReply(message.model_name, message.model_version, classes)
    raise ValueError(f"without the classes of output {output!r}")


def _as_json(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def translate(error: grpc.aio.AioRpcError, host: str, model: str, timeout_s: float) -> errors.ServerError:
    """This package's exception for a call that failed."""
    code, detail = error.code(), errors.one_line(error.details() or error.code().name)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"no answer within {timeout_s:.3g} s", host, model)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded(detail, host, model, retry_after_s=_pushback_s(error))
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(detail, host, model, _pushback_s(error))
    if code is grpc.StatusCode.INTERNAL and BROKEN.search(detail):
        return errors.Unreachable(detail, host)
    return _CODES.get(code, errors.ServerFault)(detail, host, model)


_CODES: dict[grpc.StatusCode, type[errors.ServerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.RequestRefused,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.UNAUTHENTICATED: errors.AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessDenied,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.UNKNOWN: errors.BadAnswer,
    grpc.StatusCode.CANCELLED: errors.Unreachable,
}


def _unavailable(detail: str, host: str, model: str, retry_after_s: float | None) -> errors.ServerError:
    if CONNECTING in detail:
        kind = errors.TlsError if TLS.search(detail) else errors.Unreachable
        return kind(f"cannot connect: {detail.rsplit(': ', 1)[1].lower()}", host)
    if "protocol is restricted" in detail:
        return errors.AccessDenied(detail, host, model)
    if errors.BUSY.search(detail) or retry_after_s is not None:
        return errors.Overloaded(detail, host, model, retry_after_s=retry_after_s)
    if LOADING.search(detail):
        return errors.NotReady(detail, host, model)
    return errors.Unreachable(detail, host)


def _pushback_s(error: grpc.aio.AioRpcError) -> float | None:
    """How long the server asks to wait: for ever if its pushback is negative or no number, which forbids a repeat."""
    asked = {name: str(value) for name, value in error.trailing_metadata() or ()}
    if PUSHBACK in asked:
        return float(asked[PUSHBACK]) / 1000 if asked[PUSHBACK].isdecimal() else math.inf
    return parse_retry_after(asked.get("retry-after"))
