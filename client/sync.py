"""The classifier for threads: the same core on an event loop of its own."""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from client.config import Config
from client.errors import UsageError
from client.results import Classification, Failure
from client.session import Result, Session
from client.window import Window, batches

if TYPE_CHECKING:
    from client.images import Source

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a thread of its own until it is stopped."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="classifier", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start it in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        """Stop the loop and wait for its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Classifier:
    """Classifies images on one or several servers; the first that is well is used.

    One classifier may be used by many threads at once. In a process that was forked it connects anew.

    with Classifier("grpc://127.0.0.1:8001") as classifier:
        result = classifier.classify("photo.jpg")
    """

    def __init__(self, *urls: str, **settings: Any) -> None:
        """Settings are those of `Config`. Connects when it is first used.

        Raises:
            UsageError: a setting that cannot work.
        """
        self.config = Config(urls=urls, **settings)
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._session: Session | None = None
        self._closed = False

    def wait(self, wait_s: float) -> None:
        """Wait for a server that is starting.

        Raises:
            ServerError: it was not ready in time.
        """
        thread, session = self._running()
        thread.submit(session.wait(wait_s)).result()

    def classify(self, image: "Source") -> Classification:
        """Classify a path, the bytes of a file, an array uint8 [H, W, 3] or a Pillow image.

        Raises:
            BadImage: it cannot be classified.
            ServerError: no server answered.
        """
        thread, session = self._running()
        (result,) = thread.submit(session.classify([image])).result()
        if isinstance(result, Failure):
            raise result.error
        return result

    def classify_many(self, images: Iterable["Source"]) -> Iterator[Result]:
        """Results in the order of the images, read no further ahead than the requests in flight need.

        An image that cannot be classified gives a `Failure` in its place.

        Raises:
            ServerError: no server answered.
        """
        thread, session = self._running()
        window: Window[Future[list[Result]]] = Window(2 * self.config.concurrency)
        try:
            for batch in batches(images, thread.submit(session.batch_size()).result()):
                for future in window.add(thread.submit(session.classify(batch))):
                    yield from future.result()
            for future in window.rest():
                yield from future.result()
        finally:
            for future in window.rest():
                future.cancel()

    def close(self) -> None:
        """Drop the connections; a call after this is refused."""
        with self._lock:
            self._closed = True
            thread, session = self._thread, self._session
            self._thread = self._session = None
        if thread is not None and session is not None and self._pid == os.getpid():
            thread.submit(session.close()).result()
            thread.stop()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> tuple[LoopThread, Session]:
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            if self._closed:
                raise UsageError("this classifier was closed: make another")
            if self._thread is None or self._session is None:
                self._thread = LoopThread()
                self._session = self._thread.submit(_open(self.config)).result()
            return self._thread, self._session


async def _open(config: Config) -> Session:
    return Session(config)
