"""What a classifier is told, frozen."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from client.errors import UsageError

Send = Literal["auto", "encoded", "pixels"]
Compression = Literal["gzip", "deflate"]
AUTO_BATCH = 4


@dataclass(frozen=True)
class Tls:
    """Files in PEM: the authority that signed the server, and this client's own certificate and key."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Config:
    """A classifier's settings; `Classifier` takes the same names as keyword arguments.

    Attributes:
        urls: grpc://, grpcs://, http:// or https://; the first that is well is used.
        model: None takes `classify`, or `alexnet` when pixels are sent.
        version: empty lets the server choose, which is its latest.
        top: classes an answer holds.
        timeout_s: for one image, retries and waiting for a server that went away included.
        retries: repeats of one request, each after a pause with full jitter of at most
            `backoff_cap_s`; all requests together repeat at most a tenth of what they send.
        batch: images a request, at most what the model takes. 0 sends one each until `concurrency`
            requests are in flight, then `AUTO_BATCH`, which costs this side half as much an image.
        concurrency: requests in flight.
        send: `encoded` files, `pixels` decoded here, or `auto`: what the model takes.
        hedge_s: send a second request when the first has had no answer for so long.
        priority: Triton's, 0 being the model's default.
        shm: hand images over in system shared memory, to a server on this machine.
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
    send: Send = "auto"
    compress: Compression | None = None
    hedge_s: float | None = None
    priority: int = 0
    shm: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls = field(default_factory=Tls)

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: a number out of its range.
        """
        for name, least in (("top", 1), ("batch", 0), ("concurrency", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: give {least} or more")
        if not 0 < self.timeout_s < math.inf:
            raise UsageError(f"timeout is {self.timeout_s:g} s: give more than 0")
        if self.retries < 0 or self.priority < 0:
            raise UsageError("retries and priority are 0 or more")

    @property
    def largest_batch(self) -> int:
        """Images that a request may hold."""
        return self.batch or AUTO_BATCH

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses, or the one that a server has when nobody says otherwise."""
        return self.urls or (f"grpc://127.0.0.1:{os.environ.get('GRPC_PORT', '8001')}",)

    @property
    def model_name(self) -> str:
        """The model to ask."""
        return self.model or ("alexnet" if self.send == "pixels" else "classify")
