"""How far a long run is."""

from types import TracebackType
from typing import Any

from client.results import Failure
from client.session import Result


class Progress:
    """Counts results, and shows count, rate and errors on standard error where it is wanted."""

    def __init__(self, total: int | None, shown: bool) -> None:
        self.done = self.failed = 0
        self._bar = _make_bar() if shown else None
        self._task: Any = self._bar.add_task("", total=total, errors=0, rate=0.0) if self._bar else None

    def add(self, result: Result) -> None:
        """One more."""
        self.done += 1
        self.failed += isinstance(result, Failure)
        if self._bar is not None:
            task = self._bar.tasks[0]
            rate = self.done / task.elapsed if task.elapsed else 0.0
            self._bar.update(self._task, completed=self.done, errors=self.failed, rate=rate)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]:,.0f} images/s  {task.fields[errors]} errors"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
