"""A server that is started for a load, where none is named."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.variants import Setting, variant_of
from serving import Server


@contextmanager
def fresh_server(arguments: argparse.Namespace, setting: Setting | None = None) -> Iterator[str | None]:
    """The address of a fresh server on `--repository` with the setting, or nothing where that is not given.

    Raises:
        ServingError: it does not start.
        SettingError: a setting that cannot be.
    """
    if arguments.repository is None:
        yield None
        return
    with variant_of(arguments.repository, setting or {}) as repository:
        server = Server(repository, http_port=0, grpc_port=0, metrics_port=0)
        with server:
            grpc = arguments.url and arguments.url[0].startswith("grpc")
            yield f"grpc://{server.grpc_address}" if grpc else f"http://{server.http_address}"
