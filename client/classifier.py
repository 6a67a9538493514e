"""The classifier for asyncio."""

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import UsageError
from alexnet_triton.client.inference import LookAhead, batches
from alexnet_triton.client.protocol import Classification, Failure
from alexnet_triton.client.servers import PROBE
from alexnet_triton.client.session import Result, Session

if TYPE_CHECKING:
    from alexnet_triton.client.images import Source


# WAS alexnet_triton.client.classifier: A session on an event loop in a thread of its own, which a fork does not break.
#
# gRPC's threads and locks do not survive a fork, and a child of a process whose gRPC is at work hangs in its
# first call. So sessions are closed before a fork and opened again, on demand, on both sides of it.
#


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


class ThreadedSession:
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


_portals: weakref.WeakSet[ThreadedSession] = weakref.WeakSet()


def _each(action: Callable[[ThreadedSession], None]) -> Callable[[], None]:
    def act() -> None:
        for portal in list(_portals):
            action(portal)

    return act


os.register_at_fork(
    before=_each(ThreadedSession.before_fork),
    after_in_parent=_each(ThreadedSession.after_fork_in_parent),
    after_in_child=_each(ThreadedSession.after_fork_in_child),
)


# WAS alexnet_triton.client.classifier: The classifier for threads: the same core on an event loop of its own.


class Classifier:
    """Classifies images on one or several servers; the first that is well is used.

    One classifier may be used by many threads at once, and on both sides of a fork.

    with Classifier("grpc://127.0.0.1:8001") as classifier:
        result = classifier.classify("photo.jpg")
    """

    def __init__(self, *urls: str, **settings: Any) -> None:
        """Settings are those of `Config`. Connects when it is first used.

        Raises:
            UsageError: a setting that cannot work.
        """
        self.config = Config(urls=urls, **settings)
        self._portal = ThreadedSession(self.config)

    def wait(self, wait_s: float) -> None:
        """Wait for a server that is starting.

        Raises:
            ServerError: it was not ready in time.
        """
        self._portal.run(lambda session: session.wait(wait_s))

    def classify(self, image: "Source") -> Classification:
        """Classify a path, the bytes of a file, an array uint8 [H, W, 3] or a Pillow image.

        Raises:
            BadImage: it cannot be classified.
            ServerError: no server answered.
        """
        (result,) = self._portal.run(lambda session: session.classify([image]))
        if isinstance(result, Failure):
            raise result.error
        return result

    def classify_many(self, images: Iterable["Source"]) -> Iterator[Result]:
        """Results in the order of the images, read no further ahead than the requests in flight need.

        An image that cannot be classified gives a `Failure` in its place.

        Raises:
            ServerError: no server answered.
        """
        portal = self._portal
        window: LookAhead[tuple[Work[list[Result]], Future[list[Result]]]] = LookAhead(2 * self.config.concurrency)
        try:
            for batch in batches(images, *portal.run(Session.batching)):
                work = _classify(batch)
                for started in window.add((work, portal.start(work))):
                    yield from portal.result(*started)
            for started in window.rest():
                yield from portal.result(*started)
        finally:
            for _, future in window.rest():
                future.cancel()

    def close(self) -> None:
        """Drop the connections; a call after this is refused."""
        self._portal.close()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _classify(batch: list["Source"]) -> Work[list[Result]]:
    return lambda session: session.classify(batch)


class AsyncClassifier:
    """Classifies images on one or several servers; the first that is well is used.

    async with AsyncClassifier("grpc://127.0.0.1:8001") as classifier:
        result = await classifier.classify("photo.jpg")
    """

    def __init__(self, *urls: str, **settings: Any) -> None:
        """Settings are those of `Config`. Connects when it is first used.

        Raises:
            UsageError: a setting that cannot work.
        """
        self.config = Config(urls=urls, **settings)
        self._session: Session | None = None

    @classmethod
    def from_config(cls, config: Config) -> "AsyncClassifier":
        """A classifier with settings that were made before."""
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
        """Wait for a server that is starting.

        Raises:
            ServerError: it was not ready in time.
        """
        await self.session.wait(wait_s)

    async def classify(self, image: "Source") -> Classification:
        """Classify a path, the bytes of a file, an array uint8 [H, W, 3] or a Pillow image.

        Raises:
            BadImage: it cannot be classified.
            ServerError: no server answered.
        """
        (result,) = await self.session.classify([image])
        if isinstance(result, Failure):
            raise result.error
        return result

    async def classify_many(self, images: Iterable["Source"]) -> AsyncIterator[Result]:
        """Results in the order of the images, read no further ahead than the requests in flight need.

        An image that cannot be classified gives a `Failure` in its place.

        Raises:
            ServerError: no server answered.
        """
        session = self.session
        window: LookAhead[asyncio.Task[list[Result]]] = LookAhead(2 * self.config.concurrency)
        try:
            for batch in batches(images, *await session.batching()):
                for task in window.add(asyncio.create_task(session.classify(batch))):
                    for result in await task:
                        yield result
            for task in window.rest():
                for result in await task:
                    yield result
        finally:
            left = list(window.rest())
            for task in left:
                task.cancel()
            # Their failures are those of the one that ended this: asyncio would report each as never looked at.
            await asyncio.gather(*left, return_exceptions=True)

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> "AsyncClassifier":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
