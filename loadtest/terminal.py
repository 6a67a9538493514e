"""What people see: results on standard output, bars on standard error where that is a terminal."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

TICK_S = 0.25


def out_console() -> Console:
    """For results; lines are never broken, so that they can be searched."""
    return Console(soft_wrap=True, highlight=False)


def error_console() -> Console:
    """For what is not part of the result."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def tracked(items: Iterable[int], total: int, what: str) -> Iterable[int]:
    """The items, with a bar."""
    console = error_console()
    return track(items, what, total, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def waiting(what: str, seconds: float) -> Iterator[None]:
    """A bar that fills while something of a known length goes on. It is drawn four times a second, from a thread."""
    console = error_console()
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    over = threading.Event()
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task, start_s = progress.add_task(what, total=seconds), time.monotonic()

        def draw() -> None:
            while not over.wait(TICK_S):
                progress.update(task, completed=time.monotonic() - start_s, refresh=True)

        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
