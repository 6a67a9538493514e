"""The classifiers: `AsyncClassifier` for asyncio, and `Classifier` for threads, over an event loop of its own."""

import asyncio
import gc
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import cache
from typing import Any, TypeVar

from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import UsageError
from alexnet_triton.client.images import Source
from alexnet_triton.client.protocol import Classification, Failure, Result
from alexnet_triton.client.servers import PROBE
from alexnet_triton.client.session import Session, batches

T = TypeVar("T")
Work = Callable[[Session], Coroutine[Any, Any, T]]

# How long a fork waits for the answers to what is in flight. Requests without one by then are sent again after it.
DRAIN_S = 5.0


class AsyncClassifier:
    """`Classifier` for asyncio, with the same methods.

    async with AsyncClassifier("grpc://127.0.0.1:8001") as classifier:
        result = await classifier.classify("photo.jpg")
    """

    def __init__(self, *urls: str, **settings: Any) -> None:
        """As `Classifier`."""
        self.config = Config(urls=urls, **settings)
        self._session: Session | None = None

    @classmethod
    def from_config(cls, config: Config) -> "AsyncClassifier":
        """A classifier with these settings."""
        classifier = cls()
        classifier.config = config
        return classifier

    @property
    def session(self) -> Session:
        """The core, made in the running event loop when it is first asked for."""
        if self._session is None:
            self._session = Session(self.config)
        return self._session

    async def wait(self, wait_s: float) -> None:
        """As `Classifier.wait`."""
        await self.session.wait(wait_s)

    async def classify(self, image: Source) -> Classification:
        """As `Classifier.classify`."""
        return _one(await self.session.classify([image]))

    async def classify_many(self, images: Iterable[Source]) -> AsyncIterator[Result]:
        """As `Classifier.classify_many`."""
        session = self.session
        tasks: deque[asyncio.Task[list[Result]]] = deque()
        try:
            for batch in batches(images, *await session.batching()):
                tasks.append(asyncio.create_task(session.classify(batch)))
                if len(tasks) > 2 * self.config.concurrency:
                    for result in await tasks.popleft():
                        yield result
            while tasks:
                for result in await tasks.popleft():
                    yield result
        finally:
            for task in tasks:
                task.cancel()
            # They fail as the one did that ended this; asyncio would report each failure that nobody looked at.
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> "AsyncClassifier":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Classifier:
    """Classifies images on one or several servers; the first healthy one is used.

    Many threads may use one classifier at once, also on both sides of a fork.

    with Classifier("grpc://127.0.0.1:8001") as classifier:
        result = classifier.classify("photo.jpg")
    """

    def __init__(self, *urls: str, **settings: Any) -> None:
        """Settings are those of `Config`. Connects when it is first used.

        Raises:
            UsageError: a setting that cannot work.
        """
        self.config = Config(urls=urls, **settings)
        self._session = ThreadedSession(self.config)

    def wait(self, wait_s: float) -> None:
        """Wait for a server that is starting.

        Raises:
            ServerError: it was not ready in time.
        """
        self._session.run(lambda session: session.wait(wait_s))

    def classify(self, image: Source) -> Classification:
        """Classify a path, the bytes of a file, an array uint8 [H, W, 3] or a Pillow image.

        Raises:
            BadImage: it cannot be classified.
            ServerError: no server answered.
        """
        return _one(self._session.run(_classifying([image])))

    def classify_many(self, images: Iterable[Source]) -> Iterator[Result]:
        """Results in the order of the images, read no further ahead than the requests in flight need.

        An image that cannot be classified gives a `Failure` in its place.

        Raises:
            ServerError: no server answered.
        """
        session = self._session
        started: deque[tuple[Work[list[Result]], Future[list[Result]]]] = deque()
        try:
            for batch in batches(images, *session.run(Session.batching)):
                work = _classifying(batch)
                started.append((work, session.start(work)))
                if len(started) > 2 * self.config.concurrency:
                    yield from session.result(*started.popleft())
            while started:
                yield from session.result(*started.popleft())
        finally:
            for _, future in started:
                future.cancel()

    def close(self) -> None:
        """Drop the connections; a call after this is refused."""
        self._session.close()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one(results: list[Result]) -> Classification:
    (result,) = results
    if isinstance(result, Failure):
        raise result.error
    return result


def _classifying(batch: list[Source]) -> Work[list[Result]]:
    return lambda session: session.classify(batch)


class ThreadedSession:
    """Runs work on a session from any thread and in any process.

    gRPC's threads and locks do not survive a fork, and a child of a process whose gRPC is at work hangs in its
    first call. So the session is closed before a fork, and opened again on demand on both sides of it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.RLock()
        self._running: _SessionThread | None = None
        self._closed = False
        _sessions_to_close_at_fork().add(self)

    def run(self, work: Work[T]) -> T:
        """Do the work and wait for its result. Work that a fork in another thread cut off is done again."""
        return self.result(work, self.start(work))

    def start(self, work: Work[T]) -> "Future[T]":
        """Start the work.

        Raises:
            UsageError: the session is closed.
        """
        with self._lock:
            if self._closed:
                raise UsageError("this classifier was closed: make another")
            if self._running is None:
                self._running = _SessionThread(self._config)
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
            self._stop()

    def before_fork(self) -> None:
        """Let no work start, and drop the connections."""
        self._lock.acquire()
        if self._running is not None:
            self._stop(DRAIN_S)
            gc.collect()  # channels in reference cycles keep gRPC's poller thread alive

    def after_fork_in_parent(self) -> None:
        """Let work start again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Make a new lock: the threads that may hold the old one are not in this process."""
        self._lock = threading.RLock()

    def _stop(self, drain_s: float = 0.0) -> None:
        if self._running is not None:
            self._running.stop(drain_s)
            self._running = None


class _SessionThread:
    """A session on an event loop in a thread of its own, until `stop`."""

    def __init__(self, config: Config) -> None:
        """Raises UsageError for a wrong address, or a certificate that cannot be read."""
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


@cache
def _sessions_to_close_at_fork() -> "weakref.WeakSet[ThreadedSession]":
    """The sessions of this process; the handlers of forks are registered with the first one."""
    sessions: weakref.WeakSet[ThreadedSession] = weakref.WeakSet()

    def each(action: Callable[[ThreadedSession], None]) -> Callable[[], None]:
        def act() -> None:
            for session in list(sessions):
                action(session)

        return act

    os.register_at_fork(
        before=each(ThreadedSession.before_fork),
        after_in_parent=each(ThreadedSession.after_fork_in_parent),
        after_in_child=each(ThreadedSession.after_fork_in_child),
    )
    return sessions
