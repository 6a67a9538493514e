"""Start the embedded Triton, know whether it is healthy, and keep it so."""

from typing import TYPE_CHECKING

from alexnet_triton.serving.errors import ServingError

if TYPE_CHECKING:
    from alexnet_triton.serving.server import Server


__all__ = ["Server", "ServingError"]


def __getattr__(name: str) -> object:
    # The models import this package in every stub: what starts a server (protobuf, gRPC) is loaded when asked for.
    if name == "Server":
        from alexnet_triton.serving.server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
