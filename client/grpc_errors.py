"""gRPC's status codes as this package's exceptions."""

import re

import grpc

from client import errors
from client.messages import BUSY, one_line

# What Triton itself says with UNAVAILABLE; everything else with that code comes from the connection.
LOADING = re.compile(r"no available versions|not ready|unloaded|Stub process|stopping", re.IGNORECASE)
CONNECTING = "failed to connect to all addresses; last error: "
TLS = re.compile(r"ssl|tls|handshake|certificate", re.IGNORECASE)

# Sent by gRPC servers and gateways beside RESOURCE_EXHAUSTED and UNAVAILABLE:
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
PUSHBACK = "grpc-retry-pushback-ms"


def translate(error: grpc.aio.AioRpcError, host: str, model: str, timeout_s: float) -> errors.ServerError:
    """The exception to raise for a call that failed."""
    code, detail = error.code(), one_line(error.details() or error.code().name)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"no answer within {timeout_s:.3g} s", host, model)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded(detail, host, model, _pushback_s(error))
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(detail, host, model, _pushback_s(error))
    return _KINDS.get(code, errors.ServerFault)(detail, host, model)


def _unavailable(detail: str, host: str, model: str, retry_after_s: float | None) -> errors.ServerError:
    if CONNECTING in detail:
        kind = errors.TlsError if TLS.search(detail) else errors.Unreachable
        return kind(f"cannot connect: {detail.rsplit(': ', 1)[1].lower()}", host)
    if "protocol is restricted" in detail:
        return errors.AccessDenied(detail, host, model)
    if BUSY.search(detail) or retry_after_s is not None:
        return errors.Overloaded(detail, host, model, retry_after_s)
    if LOADING.search(detail):
        return errors.NotReady(detail, host, model)
    return errors.Unreachable(detail, host)


def _pushback_s(error: grpc.aio.AioRpcError) -> float | None:
    for name, value in error.trailing_metadata() or ():
        if name == PUSHBACK and str(value).isdigit():
            return int(value) / 1000
        if name == "retry-after" and str(value).isdigit():
            return float(value)
    return None


_KINDS: dict[grpc.StatusCode, type[errors.ServerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.RequestRefused,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.UNAUTHENTICATED: errors.AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessDenied,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.UNKNOWN: errors.BadAnswer,
    grpc.StatusCode.CANCELLED: errors.Unreachable,
}
