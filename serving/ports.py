"""Ports that are free, and ports that are not."""

import errno
import socket

from serving.errors import PortTakenError, ServingError

Ports = dict[str, int]  # "http", "grpc", "metrics" -> port
VARIABLES = {"http": "HTTP_PORT", "grpc": "GRPC_PORT", "metrics": "METRICS_PORT"}


def settle_ports(host: str, asked: Ports) -> Ports:
    """Check the ports that are asked for, and pick a free one for each 0.

    Raises:
        PortTakenError: another program listens there.
        ServingError: two services want the same port, or the host is not this machine's.
    """
    held: list[socket.socket] = []
    try:
        for name, port in asked.items():
            held.append(_bind(host, port, VARIABLES[name]))
        return {name: sock.getsockname()[1] for name, sock in zip(asked, held, strict=True)}
    finally:
        for sock in held:
            sock.close()


def _bind(host: str, port: int, variable: str) -> socket.socket:
    """Held until all are settled, so that no two of them can be the same."""
    family, _, _, _, address = _resolve(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's wait is no user of the port
        sock.bind(address)
    except PermissionError as error:
        sock.close()
        raise ServingError(f"port {port} is not allowed to this user: set {variable} to one above 1023") from error
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ServingError(f"{host} is not an address of this machine") from error
        raise PortTakenError(host, port, variable) from error
    return sock


def _resolve(host: str, port: int) -> tuple:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServingError(f"{host} is not an address: {error.strerror or error}") from error
