"""Progress bars on stderr, on terminals only."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(visible: bool = True) -> Progress:
    """A bar with its note and the time left."""
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    note = TextColumn("{task.fields[note]}")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    return Progress(
        *columns, TimeRemainingColumn(), note, console=console, disable=not (visible and console.is_terminal)
    )
