"""The classifier for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from client.config import Config
from client.results import Classification, Failure
from client.session import Result, Session
from client.window import Window, batches

if TYPE_CHECKING:
    from client.images import Source


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
        window: Window[asyncio.Task[list[Result]]] = Window(2 * self.config.concurrency)
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
