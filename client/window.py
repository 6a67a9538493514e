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


def batches(items: Iterable[T], size: int, alone: int = 0) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; the first `alone` items each in a list of its own."""
    iterator = iter(items)
    for item in islice(iterator, alone):
        yield [item]
    while batch := list(islice(iterator, size)):
        yield batch
