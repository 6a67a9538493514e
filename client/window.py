"""Bounded look-ahead with results in order."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Window(Generic[T]):
    """Started work in the order it was started, at most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self._limit, self._started = limit, deque[T]()

    def add(self, work: T) -> Iterator[T]:
        """Take one more in; gives the oldest when there are too many."""
        self._started.append(work)
        while len(self._started) > self._limit:
            yield self._started.popleft()

    def rest(self) -> Iterator[T]:
        """Give out what is left, the oldest first."""
        while self._started:
            yield self._started.popleft()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
