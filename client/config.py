"""A classifier's settings, and the addresses of servers."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from alexnet_triton.client.errors import UsageError

InputFormat = Literal["auto", "encoded", "pixels"]
AUTO_BATCH = 4
PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
EXAMPLE = "give grpc://127.0.0.1:8001, http://127.0.0.1:8000, grpcs://... or https://..."


@dataclass(frozen=True)
class Address:
    """Where a server listens. `prefix` is the path before /v2, for HTTP behind a gateway."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme in ("grpcs", "https")

    @property
    def is_grpc(self) -> bool:
        """Whether the protocol is gRPC; else it is HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def authority(self) -> str:
        """host:port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def parse_address(url: str) -> Address:
    """Read a URL.

    Raises:
        UsageError: another scheme, no host, no such port, or a user, path or query that does not belong there.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"--url {url!r}: {error}; {EXAMPLE}") from None
    if parts.scheme not in PORTS or not host:
        raise UsageError(f"--url {url!r} is no address of a server: {EXAMPLE}")
    prefix = parts.path.rstrip("/")
    if parts.username or parts.query or parts.fragment or (prefix and parts.scheme.startswith("grpc")):
        raise UsageError(f"--url {url!r} holds more than scheme, host and port: {EXAMPLE}")
    return Address(parts.scheme, host, PORTS[parts.scheme] if port is None else port, prefix)


@dataclass(frozen=True)
class Tls:
    """PEM files: the authority that signed the server's certificate, and this client's own certificate and key."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Config:
    """A classifier's settings; `Classifier` takes the same names as keyword arguments.

    Attributes:
        urls: grpc://, grpcs://, http:// or https://; the first healthy one is used.
        model: None takes `classify`, or `alexnet` when pixels are sent.
        version: empty lets the server choose, which is its latest.
        top: classes an answer holds.
        timeout_s: for one image, with retries and the wait for a server that went away.
        retries: repeats of one request, each after a pause with full jitter of at most
            `backoff_cap_s`; all requests together repeat at most a tenth of what they send.
        batch: images a request, at most what the model takes. 0 sends one each until `concurrency`
            requests are in flight, then `AUTO_BATCH`, which halves this side's work for an image.
        concurrency: requests in flight.
        send: `encoded` files, `pixels` decoded here, or `auto`: what the model takes.
        hedge_s: send a second request when the first has had no answer for so long.
        priority: Triton's, 0 is the model's default.
        headers: sent with every request.
    """

    urls: tuple[str, ...] = ()
    model: str | None = None
    version: str = ""
    top: int = 5
    timeout_s: float = 30.0
    retries: int = 8
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 2.0
    batch: int = 1
    concurrency: int = 16
    send: InputFormat = "auto"
    hedge_s: float | None = None
    priority: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls = field(default_factory=Tls)

    def __post_init__(self) -> None:
        """Raises UsageError for a number out of its range."""
        for name, least in (("top", 1), ("batch", 0), ("concurrency", 1), ("retries", 0), ("priority", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: give {least} or more")
        if not 0 < self.timeout_s < math.inf:
            raise UsageError(f"timeout is {self.timeout_s:g} s: give more than 0")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The URLs, or by default that of a server on this machine."""
        return self.urls or (f"grpc://127.0.0.1:{os.environ.get('GRPC_PORT', '8001')}",)

    @property
    def model_name(self) -> str:
        """The model to ask."""
        return self.model or ("alexnet" if self.send == "pixels" else "classify")
