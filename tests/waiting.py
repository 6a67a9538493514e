"""Waiting for something that happens in another process."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Ask until the condition holds; a server that does not answer yet counts as one that does not."""
    deadline = time.monotonic() + timeout_s
    while not _holds(condition):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except OSError:
        return False
