"""HTTP statuses and aiohttp's errors as this package's exceptions."""

import asyncio
import json
import os
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import aiohttp

from client import errors
from client.messages import BUSY, one_line


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
