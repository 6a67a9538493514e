"""Ctrl-C and SIGTERM as a wish that is granted after the running step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Wish:
    """Has anyone asked to stop?"""

    def __init__(self) -> None:
        self.stop = False


@contextmanager
def interrupts() -> Iterator[Wish]:
    """Note the first signal in the wish; a second one ends the process as it always does."""
    wish = Wish()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        wish.stop = True
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number in numbers:
            signal.signal(number, before[number])
