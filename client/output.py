"""What the command prints: results as text, JSON lines or CSV, and the progress of a long run."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from alexnet_triton.client.protocol import Failure, Result
from alexnet_triton.common.command import printable

TRANSIENT = " [transient]"  # ends the recorded error of an image that --resume tries again
BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"
BOLD, DIM, COLOUR, PLAIN = "\033[1m", "\033[2m", "\033[36m", "\033[0m"


def formatter(name: str, top: int, terminal: bool) -> Callable[[Result], str]:
    """A function from a result to its text with line breaks; bars and colour on a terminal."""
    if name == "json":
        return to_json
    if name == "csv":
        return lambda result: to_csv(result, top)
    return lambda result: to_text(result, terminal)


def header(name: str, top: int) -> str:
    """The text before the first result."""
    if name != "csv":
        return ""
    columns = [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("label", "index", "probability")]
    return _row(["path", "model", "version", "ms", "error", *columns])


def to_json(result: Result) -> str:
    """One object on one line; bytes of a name that are not UTF-8 become lone surrogates."""
    if isinstance(result, Failure):
        return json.dumps({"path": result.path, "error": error_text(result)}) + "\n"
    # Written out: dataclasses.asdict takes as long as everything else that this program does with an answer.
    top = [{"label": each.label, "index": each.index, "probability": each.probability} for each in result.top]
    fields = {"path": result.path, "model": result.model, "version": result.version, "top": top}
    return json.dumps(fields | {"ms": round(result.ms, 3)}) + "\n"


def error_text(failure: Failure) -> str:
    """The error as results hold it."""
    return f"{failure.error}{TRANSIENT if failure.error.transient else ''}"


def to_csv(result: Result, top: int) -> str:
    """One row with as many columns as the header."""
    if isinstance(result, Failure):
        return _row([result.path, "", "", "", error_text(result), *[""] * (3 * top)])
    columns = [value for label in result.top for value in (label.label, label.index, f"{label.probability:.6f}")]
    columns += [""] * (3 * top - len(columns))
    return _row([result.path, result.model, result.version, f"{result.ms:.3f}", "", *columns])


def to_text(result: Result, bars: bool) -> str:
    """The name, then one line for each class; nothing for a failure, which goes to standard error."""
    if isinstance(result, Failure):
        return ""
    name, labels = printable(result.path or ""), [(each.probability, printable(each.label)) for each in result.top]
    if bars:
        lines = [f"{BOLD}{name}{PLAIN}", *(_bar_line(*label, rank) for rank, label in enumerate(labels))]
    else:
        lines = [name, *(f"  {probability:.4f}  {label}" for probability, label in labels)]
    return "".join(f"{line}\n" for line in lines)


def _bar_line(probability: float, label: str, rank: int) -> str:
    """A probability with a bar of `BAR_WIDTH` characters, to an eighth of a character."""
    whole, eighth = divmod(round(probability * BAR_WIDTH * 8), 8)
    bar = ("█" * whole + (EIGHTHS[eighth] if eighth else "")).ljust(BAR_WIDTH)
    name = f"{BOLD}{label}{PLAIN}" if rank == 0 else label
    return f"  {probability:7.2%} {COLOUR}{bar}{PLAIN} {name}"


def _row(values: list[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


class Progress:
    """Counts results; if `shown`, standard error has a bar with count, rate and errors."""

    def __init__(self, total: int | None, shown: bool) -> None:
        self.done = self.failed = 0
        self._bar = _make_bar() if shown else None
        self._task: Any = self._bar.add_task("", total=total, errors=0, rate=0.0) if self._bar else None

    def add(self, result: Result) -> None:
        """Count one more result."""
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

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar() -> Any:
    # Loaded here: rich takes a while, and most runs show no bar.
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
