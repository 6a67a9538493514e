"""Sending one request until it is answered: to which server, how often, how long."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from alexnet_triton.client.config import Address, Config, parse_address
from alexnet_triton.client.errors import DeadlineExceeded, NotReady, ServerError, Unreachable
from alexnet_triton.client.protocol import Transport

PROBE = "probe"
PROBE_TIMEOUT_S = 2.0
PROBE_PAUSE_S = 0.1
PROBE_PAUSE_CAP_S = 1.0

T = TypeVar("T")
Connect = Callable[[Address, Config], Transport]


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
        """Take a token for one more repeat; False when there is none."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3); None if it holds neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp() - time.time())


class Endpoint:
    """One address, the transport to it, whether it answered last time, and until when it asked to be left alone."""

    def __init__(self, address: Address, transport: Transport) -> None:
        self.address, self.transport = address, transport
        self.healthy, self.busy_until = True, 0.0
        self.error: ServerError | None = None
        self.probe: asyncio.Task[None] | None = None


class Pool:
    """The servers, in the order they were named. Picks the first free one; a lost one is probed until it is back."""

    def __init__(self, config: Config, connect: Connect) -> None:
        addresses = [parse_address(url) for url in config.addresses]
        self.endpoints = [Endpoint(address, connect(address, config)) for address in addresses]
        self._model, self._version = config.model_name, config.version
        self._answered = False  # a server that never answered is not waited for: the address may be wrong
        self._recovered = asyncio.Event()

    async def pick(self, deadline: Deadline, avoid: Endpoint | None = None) -> Endpoint:
        """The healthy server that is free first, another than `avoid` if there is one. Waits for a lost one.

        Raises:
            ServerError: none is healthy before the deadline, or none ever answered.
        """
        while True:
            healthy = [endpoint for endpoint in self.endpoints if endpoint.healthy]
            if healthy:
                return min(healthy, key=lambda endpoint: (_busy_s(endpoint), endpoint is avoid))
            error = next(endpoint.error for endpoint in self.endpoints if endpoint.error)
            if not self._answered or not deadline.left_s:
                raise error
            self._recovered.clear()
            try:
                await asyncio.wait_for(self._recovered.wait(), deadline.left_s)
            except asyncio.TimeoutError:
                raise error from None

    def busy_s(self) -> float:
        """Seconds until the first healthy server takes requests again."""
        return min((_busy_s(endpoint) for endpoint in self.endpoints if endpoint.healthy), default=0.0)

    def succeeded(self, endpoint: Endpoint) -> None:
        """The server answered: it is healthy, and `pick` waits no longer."""
        self._answered = endpoint.healthy = True
        self._recovered.set()

    def failed(self, endpoint: Endpoint, error: ServerError) -> None:
        """The server did not answer: if it is lost, pick others and probe it; if it is busy, others first."""
        if error.retry_after_s and error.retry_after_s < math.inf:
            endpoint.busy_until = max(endpoint.busy_until, time.monotonic() + error.retry_after_s)
        lost = isinstance(error, (Unreachable, NotReady))
        slow = isinstance(error, DeadlineExceeded) and len(self.endpoints) > 1
        if not (lost or slow):
            return
        endpoint.error, endpoint.healthy = error, False
        if endpoint.probe is None or endpoint.probe.done():
            endpoint.probe = asyncio.create_task(self._probe(endpoint), name=PROBE)

    async def close(self) -> None:
        """Drop every connection."""
        for endpoint in self.endpoints:
            if endpoint.probe:
                endpoint.probe.cancel()
            await endpoint.transport.close()

    async def _probe(self, endpoint: Endpoint) -> None:
        pause_s = PROBE_PAUSE_S
        while not endpoint.healthy:
            await asyncio.sleep(pause_s)
            pause_s = min(PROBE_PAUSE_CAP_S, pause_s * 1.5)
            try:
                await endpoint.transport.ready(self._model, self._version, PROBE_TIMEOUT_S)
            except ServerError as error:
                endpoint.error = error
            else:
                self.succeeded(endpoint)


def _busy_s(endpoint: Endpoint) -> float:
    return max(0.0, endpoint.busy_until - time.monotonic())


Call = Callable[[Endpoint, float], Awaitable[T]]


class Dispatcher:
    """Repeats failed calls, on the next server if there is one. Every call through it must be safe to repeat."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._config, self._pool = config, pool
        # Everything in flight may fail at once when a server goes away, which must not end the run.
        self.budget = RetryBudget(max(100.0, 4.0 * config.concurrency * max(1, config.retries)))

    async def send(self, call: Call[T], deadline: Deadline) -> tuple[T, Endpoint, int]:
        """Call `call(endpoint, timeout_s)` until it returns: the result, the server that gave it, and the attempts.

        Raises:
            ServerError: the last attempt's.
        """
        attempt, last = 0, None
        while True:
            endpoint = await self._pool.pick(deadline, last)
            self.budget.earn()
            try:
                value, endpoint = await self._hedged(call, endpoint, deadline)
                return value, endpoint, attempt + 1
            except ServerError as error:
                await self._back_off(error, attempt, deadline)
            attempt, last = attempt + 1, endpoint

    async def _back_off(self, error: ServerError, attempt: int, deadline: Deadline) -> None:
        """Wait before the next attempt, or re-raise: also if every server asks for more time than there is."""
        # What the servers asked for, and full jitter under a doubling cap:
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        cap_s = min(self._config.backoff_cap_s, self._config.backoff_base_s * 2**attempt)
        wait_s = self._pool.busy_s() + random.uniform(0, cap_s)
        elsewhere = isinstance(error, DeadlineExceeded) and len(self._pool.endpoints) > 1
        forbidden = not (error.retryable or elsewhere) or error.retry_after_s == math.inf
        if forbidden or attempt >= self._config.retries or wait_s >= deadline.left_s or not self.budget.spend():
            raise error
        await asyncio.sleep(wait_s)

    async def _hedged(self, call: Call[T], endpoint: Endpoint, deadline: Deadline) -> tuple[T, Endpoint]:
        """One attempt, with a second one beside it when the first is slow; the first answer counts."""
        if self._config.hedge_s is None:
            return await self._once(call, endpoint, deadline), endpoint
        first: asyncio.Future[T] = asyncio.ensure_future(self._once(call, endpoint, deadline))
        tasks = {first: endpoint}
        try:
            await asyncio.wait(tasks, timeout=min(self._config.hedge_s, deadline.left_s))
            if not first.done() and self.budget.spend():
                other = await self._pool.pick(deadline, endpoint)
                tasks[asyncio.ensure_future(self._once(call, other, deadline))] = other
            return await _first_answer(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _once(self, call: Call[T], endpoint: Endpoint, deadline: Deadline) -> T:
        # With several servers, one that never answers must leave time for the next.
        share_s = deadline.left_s / 2 if len(self._pool.endpoints) > 1 else deadline.left_s
        try:
            value = await call(endpoint, max(share_s, 0.001))
        except ServerError as error:
            self._pool.failed(endpoint, error)
            raise
        self._pool.succeeded(endpoint)
        return value


async def _first_answer(tasks: dict[asyncio.Future[T], Endpoint]) -> tuple[T, Endpoint]:
    """The first task that succeeds; when all fail, the first one's error."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result(), tasks[task]
    return await next(iter(tasks)), next(iter(tasks.values()))
