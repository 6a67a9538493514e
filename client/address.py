"""A server's address."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from client.errors import UsageError

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
        """Whether TLS is spoken."""
        return self.scheme in ("grpcs", "https")

    @property
    def is_grpc(self) -> bool:
        """Whether gRPC is spoken."""
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
        UsageError: another scheme, no host, no such port, or a user, path or query where none belongs.
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
