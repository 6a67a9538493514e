"""Sending one request until it is answered: which server, how often, how long."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from alexnet_triton.client.config import Address, Config, parse_address
from alexnet_triton.client.errors import DeadlineExceeded, NotReady, ServerError, Unreachable
from alexnet_triton.client.protocol import Transport

# WAS alexnet_triton.client.servers: When to send again, and how long to wait before it.


class Deadline:
    """A moment on the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self.at_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds until then, never below 0."""
        return max(0.0, self.at_s - time.monotonic())


class RetryBudget:
    """Repeats that all requests share, so that a server in trouble is not asked many times over.

    A bucket of tokens: a request puts a tenth of one in, a repeat takes one out
    (https://sre.google/sre-book/addressing-cascading-failures/, "retry budget").
    """

    def __init__(self, capacity: float, deposit: float = 0.1) -> None:
        self.tokens = self._capacity = capacity
        self._deposit = deposit

    def earn(self) -> None:
        """A request was sent."""
        self.tokens = min(self._capacity, self.tokens + self._deposit)

    def spend(self) -> bool:
        """Whether one more repeat may be sent."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def pause_s(attempt: int, base_s: float, cap_s: float, error: ServerError | None = None) -> float:
    """Seconds to wait after attempt 0, 1, ...: full jitter under a doubling cap, and what the server asked for.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    asked_s = getattr(error, "retry_after_s", None) or 0.0
    return asked_s + random.uniform(0, min(cap_s, base_s * 2**attempt))


# WAS alexnet_triton.client.servers: The servers, in the order they were named, and which of them are well.


PROBE = "probe"
PROBE_TIMEOUT_S = 2.0
PROBE_PAUSE_S = 0.1
PROBE_PAUSE_CAP_S = 1.0

Connect = Callable[[Address, Config], Transport]


def connect(address: Address, config: Config) -> Transport:
    """A transport for the address's scheme; only that scheme's library is imported."""
    if address.is_grpc:
        from alexnet_triton.client.grpc_transport import GrpcTransport

        return GrpcTransport(address, config)
    from alexnet_triton.client.http_transport import HttpTransport

    return HttpTransport(address, config)


class ServerState:
    """One address, its transport, and whether it answered last time."""

    def __init__(self, address: Address, transport: Transport) -> None:
        self.address, self.transport = address, transport
        self.well = True
        self.generation = 0  # how often it has been lost, so that what it held is known to be gone
        self.error: ServerError | None = None
        self.probe: asyncio.Task[None] | None = None


class Pool:
    """Gives the first server that is well; a lost one is probed until it is back."""

    def __init__(self, config: Config) -> None:
        addresses = [parse_address(url) for url in config.addresses]
        self.servers = [ServerState(address, connect(address, config)) for address in addresses]
        self._model, self._version = config.model_name, config.version
        self._seen = False  # a server that never answered is not waited for: the address may be wrong
        self._back = asyncio.Event()

    async def pick(self, deadline: Deadline, avoid: ServerState | None = None) -> ServerState:
        """The first server that is well, another than `avoid` if there is one; waits for one that is coming back.

        Raises:
            ServerError: none is well before the deadline, or none ever was.
        """
        while True:
            well = [server for server in self.servers if server.well]
            if well:
                return next((server for server in well if server is not avoid), well[0])
            error = next(server.error for server in self.servers if server.error)
            if not self._seen or not deadline.left_s:
                raise error
            self._back.clear()
            try:
                await asyncio.wait_for(self._back.wait(), deadline.left_s)
            except asyncio.TimeoutError:
                raise error from None

    def worked(self, server: ServerState) -> None:
        """The server answered; who waits for one that is well need wait no longer."""
        self._seen = server.well = True
        self._back.set()

    def failed(self, server: ServerState, error: ServerError) -> None:
        """The server did not answer: look elsewhere, and see when it is back."""
        lost = isinstance(error, (Unreachable, NotReady))
        slow = isinstance(error, DeadlineExceeded) and len(self.servers) > 1
        if not (lost or slow):
            return
        server.error = error
        if server.well:
            server.well, server.generation = False, server.generation + 1
        if server.probe is None or server.probe.done():
            server.probe = asyncio.create_task(self._probe(server), name=PROBE)

    async def close(self) -> None:
        """Drop every connection."""
        for server in self.servers:
            if server.probe:
                server.probe.cancel()
            await server.transport.close()

    async def _probe(self, server: ServerState) -> None:
        pause_s = PROBE_PAUSE_S
        while not server.well:
            await asyncio.sleep(pause_s)
            pause_s = min(PROBE_PAUSE_CAP_S, pause_s * 1.5)
            try:
                await server.transport.ready(self._model, self._version, PROBE_TIMEOUT_S)
            except ServerError as error:
                server.error = error
            else:
                self.worked(server)


T = TypeVar("T")
SendRequest = Callable[[ServerState, float], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Dispatched(Generic[T]):
    """What came back, from where, and the number of attempts it took."""

    value: T
    server: ServerState
    attempts: int


class Dispatcher:
    """Repeats what failed, on the next server where there is one. Everything sent through it may be repeated."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._config, self._pool = config, pool
        # Everything in flight may fail at once when a server goes away, which must not end the run.
        self.budget = RetryBudget(max(100.0, 4.0 * config.concurrency * max(1, config.retries)))

    async def send(self, send: SendRequest[T], deadline: Deadline) -> Dispatched[T]:
        """Call `send(server, timeout_s)` until it returns.

        Raises:
            ServerError: what the last attempt ended in.
        """
        attempt, last = 0, None
        while True:
            server = await self._pool.pick(deadline, last)
            self.budget.earn()
            try:
                value, server = await self._hedged(send, server, deadline)
                return Dispatched(value, server, attempt + 1)
            except ServerError as error:
                await self._pause(error, attempt, deadline)
            attempt, last = attempt + 1, server

    async def _pause(self, error: ServerError, attempt: int, deadline: Deadline) -> None:
        """Wait before the next attempt, or raise the error where there is to be none."""
        wait_s = pause_s(attempt, self._config.backoff_base_s, self._config.backoff_cap_s, error)
        elsewhere = isinstance(error, DeadlineExceeded) and len(self._pool.servers) > 1
        if not (error.retryable or elsewhere) or attempt >= self._config.retries or wait_s >= deadline.left_s:
            raise error
        if not self.budget.spend():
            raise error
        await asyncio.sleep(wait_s)

    async def _hedged(self, send: SendRequest[T], server: ServerState, deadline: Deadline) -> tuple[T, ServerState]:
        """One attempt, with a second one beside it when the first is slow; the first answer counts."""
        if self._config.hedge_s is None:
            return await self._once(send, server, deadline), server
        first: asyncio.Future[T] = asyncio.ensure_future(self._once(send, server, deadline))
        tasks = {first: server}
        try:
            await asyncio.wait(tasks, timeout=min(self._config.hedge_s, deadline.left_s))
            if not first.done() and self.budget.spend():
                other = await self._pool.pick(deadline, server)
                tasks[asyncio.ensure_future(self._once(send, other, deadline))] = other
            return await _first_answer(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _once(self, send: SendRequest[T], server: ServerState, deadline: Deadline) -> T:
        # With several servers, one that never answers must leave time for the next.
        share_s = max(deadline.left_s / 2, 0.001) if len(self._pool.servers) > 1 else deadline.left_s
        try:
            value = await send(server, max(share_s, 0.001))
        except ServerError as error:
            self._pool.failed(server, error)
            raise
        self._pool.worked(server)
        return value


async def _first_answer(tasks: dict[asyncio.Future[T], ServerState]) -> tuple[T, ServerState]:
    """The first task that succeeds; the first one's error when all fail."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result(), tasks[task]
    return await next(iter(tasks)), next(iter(tasks.values()))
