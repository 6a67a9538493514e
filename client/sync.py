"""The classifier for threads: the same core on an event loop of its own."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from client.config import Config
from client.loop import Portal, Work
from client.results import Classification, Failure
from client.session import Result, Session
from client.window import Window, batches

if TYPE_CHECKING:
    from client.images import Source


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
        self._portal = Portal(self.config)

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
        window: Window[tuple[Work[list[Result]], Future[list[Result]]]] = Window(2 * self.config.concurrency)
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
