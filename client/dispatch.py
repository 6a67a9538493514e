"""Sending one request until it is answered: which server, how often, how long."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from client.config import Config
from client.errors import DeadlineExceeded, ServerError
from client.pool import Pool, Server
from client.retry import Deadline, RetryBudget, pause_s

T = TypeVar("T")
Send = Callable[[Server, float], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came back, from where, and the number of attempts it took."""

    value: T
    server: Server
    attempts: int


class Dispatcher:
    """Repeats what failed, on the next server where there is one. Everything sent through it may be repeated."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._config, self._pool = config, pool
        # Everything in flight may fail at once when a server goes away, which must not end the run.
        self.budget = RetryBudget(max(100.0, 4.0 * config.concurrency * max(1, config.retries)))

    async def send(self, send: Send[T], deadline: Deadline) -> Answer[T]:
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
                return Answer(value, server, attempt + 1)
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

    async def _hedged(self, send: Send[T], server: Server, deadline: Deadline) -> tuple[T, Server]:
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

    async def _once(self, send: Send[T], server: Server, deadline: Deadline) -> T:
        # With several servers, one that never answers must leave time for the next.
        share_s = max(deadline.left_s / 2, 0.001) if len(self._pool.servers) > 1 else deadline.left_s
        try:
            value = await send(server, max(share_s, 0.001))
        except ServerError as error:
            self._pool.failed(server, error)
            raise
        self._pool.worked(server)
        return value


async def _first_answer(tasks: dict[asyncio.Future[T], Server]) -> tuple[T, Server]:
    """The first task that succeeds; the first one's error when all fail."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result(), tasks[task]
    return await next(iter(tasks)), next(iter(tasks.values()))
