"""Requests at a rate that does not wait for answers, over HTTP, in a process of its own.

Times count from when a request was meant to be sent, so that a generator or a server that stalls is not flattered.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import numpy as np

from alexnet_triton.loadtest.bench import photographs
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, TRITON_PATH

MAX_CONNECTIONS = 2048
CUT = 0  # instead of a status: the connection ended before the answer
DRAIN_S = 15.0


@dataclass(frozen=True)
class Answers:
    """Arrays [n], by request: when it was meant, its answer's time in milliseconds, its HTTP status."""

    meant_s: np.ndarray
    times_ms: np.ndarray
    status: np.ndarray


def send(address: str, bodies: Path, rate_per_s: float, seconds: float) -> Answers:
    """Post JPEGs at random moments, `rate_per_s` a second on average, and wait for the last answer."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_worker, args=(child, address, bodies, rate_per_s, seconds))
    process.start()
    answers = parent.recv()
    process.join()
    return Answers(*answers)


def _worker(pipe: Pipe, address: str, bodies: Path, rate_per_s: float, seconds: float) -> None:
    requests = [_request(address, body) for body in photographs.load_images(bodies)]
    pauses = np.random.default_rng(0).exponential(1 / rate_per_s, int(rate_per_s * seconds))
    pipe.send(asyncio.run(_Generator(address, requests).run(pauses.cumsum())))


def _request(address: str, body: bytes) -> bytes:
    lines = [f"POST {TRITON_PATH} HTTP/1.1", f"Host: {address}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in TRITON_HEADERS.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    """One HTTP connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answered: Callable[[int], None] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes, answered: Callable[[int], None]) -> None:
        assert self._transport
        self._answered = answered
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if blank and len(rest) >= _content_length(head):
            self._buffer = b""
            self._end(int(head.split(b" ", 2)[1]))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(CUT)

    def close(self) -> None:
        assert self._transport
        self._transport.close()

    def _end(self, status: int) -> None:
        answered, self._answered = self._answered, None
        if answered:
            answered(status)


def _content_length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return next((int(value) for name, _, value in fields if name.lower() == b"content-length"), 0)


class _Generator:
    def __init__(self, address: str, requests: Sequence[bytes]) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._requests = requests
        self._idle: list[_Connection] = []
        self._open = 0
        self._results: list[tuple[float, float, int]] = []

    async def run(self, moments_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Send a request at each moment after the start; returns the arrays of `Answers`."""
        start = time.perf_counter()
        for number, moment_s in enumerate(moments_s):
            if (pause_s := start + moment_s - time.perf_counter()) > 0:
                await asyncio.sleep(pause_s)
            await self._send(self._requests[number % len(self._requests)], start, float(moment_s))
        deadline = time.perf_counter() + DRAIN_S
        while len(self._results) < len(moments_s) and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        for connection in self._idle:
            connection.close()
        meant, times_ms, status = np.array(self._results).T
        return meant, times_ms, status.astype(int)

    async def _send(self, request: bytes, start: float, moment_s: float) -> None:
        connection = self._idle.pop() if self._idle else await self._connect()
        if connection is None:
            self._results.append((moment_s, 0.0, CUT))
            return

        def answered(status: int) -> None:
            self._results.append((moment_s, (time.perf_counter() - start - moment_s) * 1e3, status))
            if status == CUT:
                self._open -= 1
            else:
                self._idle.append(connection)

        connection.ask(request, answered)

    async def _connect(self) -> _Connection | None:
        if self._open >= MAX_CONNECTIONS:
            return None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        except OSError:
            return None
        self._open += 1
        return connection
