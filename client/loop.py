"""A session on an event loop in a thread of its own, which a fork does not break.

gRPC's threads and locks do not survive a fork, and a child of a process whose gRPC is at work hangs in its
first call. So sessions are closed before a fork and opened again, on demand, on both sides of it.
"""

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from client.config import Config
from client.errors import UsageError
from client.pool import PROBE
from client.session import Session

T = TypeVar("T")
# How long a fork waits for the answers to what is in flight. What has none by then is sent again behind it.
DRAIN_S = 5.0
Work = Callable[[Session], Coroutine[Any, Any, T]]


class SessionThread:
    """One loop, one thread, one session, from `start` to `stop`."""

    def __init__(self, config: Config) -> None:
        """Raises:
        UsageError: an address that is none, a certificate that cannot be read.
        """
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="classifier", daemon=True)
        self._thread.start()
        try:
            self.session = asyncio.run_coroutine_threadsafe(_open(config), self.loop).result()
        except BaseException:
            self._end()
            raise

    def submit(self, work: Work[T]) -> "Future[T]":
        """Start work on the session."""
        return asyncio.run_coroutine_threadsafe(work(self.session), self.loop)

    def stop(self, drain_s: float = 0.0) -> None:
        """Wait for what is running, cancel what is left, drop the connections, end the thread."""
        asyncio.run_coroutine_threadsafe(_shut(self.session, drain_s), self.loop).result()
        self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Portal:
    """Runs work on a session from any thread and in any process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.RLock()
        self._running: SessionThread | None = None
        self._closed = False
        _portals.add(self)

    def run(self, work: Work[T]) -> T:
        """Wait for the work's result. It is done again when a fork in another thread cut it off."""
        return self.result(work, self.start(work))

    def start(self, work: Work[T]) -> "Future[T]":
        """Start the work.

        Raises:
            UsageError: the portal is closed.
        """
        with self._lock:
            if self._closed:
                raise UsageError("this classifier was closed: make another")
            if self._running is None:
                self._running = SessionThread(self._config)
            return self._running.submit(work)

    def result(self, work: Work[T], future: "Future[T]") -> T:
        """Wait for work that was started."""
        while True:
            try:
                return future.result()
            except CancelledError:
                future = self.start(work)
            except BaseException:
                future.cancel()  # interrupted while waiting: nobody wants the answer any more
                raise

    def close(self) -> None:
        """Drop the connections; work after this is refused."""
        with self._lock:
            self._closed = True
            self._rest()

    def before_fork(self) -> None:
        """Let nothing start, and drop the connections."""
        self._lock.acquire()
        if self._running is not None:
            self._rest(DRAIN_S)
            gc.collect()  # channels in reference cycles, which keep gRPC's poller thread alive

    def after_fork_in_parent(self) -> None:
        """Let work start again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Only the forking thread is here: the lock of the others means nothing."""
        self._lock = threading.RLock()

    def _rest(self, drain_s: float = 0.0) -> None:
        if self._running is not None:
            self._running.stop(drain_s)
            self._running = None


async def _open(config: Config) -> Session:
    return Session(config)


async def _shut(session: Session, drain_s: float) -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    working = [task for task in tasks if task.get_name() != PROBE]
    if working and drain_s:
        await asyncio.wait(working, timeout=drain_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await session.close()


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


def _each(action: Callable[[Portal], None]) -> Callable[[], None]:
    def act() -> None:
        for portal in list(_portals):
            action(portal)

    return act


os.register_at_fork(
    before=_each(Portal.before_fork),
    after_in_parent=_each(Portal.after_fork_in_parent),
    after_in_child=_each(Portal.after_fork_in_child),
)
