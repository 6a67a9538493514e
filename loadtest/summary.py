"""Results on standard output, and progress bars on standard error where that is a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from alexnet_triton.loadtest.recorder import QUANTILES

COLUMNS = {**QUANTILES, "max": "max_ms"}

WORDS = {True: "[green]met[/]   ", False: "[red]missed[/]", None: "[yellow]not decided[/]"}


def out_console() -> Console:
    """For results; lines are never broken, so that they can be searched."""
    return Console(soft_wrap=True, highlight=False)


def error_console() -> Console:
    """For what is not part of the result."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def tracked(items: Sequence[int], what: str) -> Iterable[int]:
    """The items, with a bar."""
    console = error_console()
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)


class _Clock(Progress):
    """Bars of seconds, which fill by themselves."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            self.update(task.id, completed=task.elapsed)
        return super().get_renderables()


@contextmanager
def waiting(what: str, seconds: float) -> Iterator[None]:
    """A bar that fills while something of a known length goes on. It is drawn four times a second, from a thread."""
    console = error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with _Clock(*columns, console=console, transient=True, refresh_per_second=4, disable=quiet) as progress:
        progress.add_task(what, total=seconds)
        yield


def show_run(result: Mapping[str, Any], console: Console) -> None:
    """One run: what was asked, what came, where the time went, the verdict."""
    figures = result["measured"]
    console.print(f"[bold]{escape(result['title'])}[/]  {escape(load_words(result['load']))}")
    console.print(_rates(figures))
    console.print(_latency_table(figures, open_loop=result["load"]["loop"] == "open"))
    for failure in figures["failures"]:
        console.print(f"[red]{failure['count']:,} x {escape(failure['name'])}[/]")
        for example in failure["examples"][:3]:
            console.print(f"    {escape(example)}")
    _show_server(figures["server"], console)
    _show_generator(figures["generator"], console)
    for each in result["verdict"]:
        console.print(f"{WORDS[each['met']]} {each['name']} {each['limit']}: {each['measured']}")


def load_words(load: Mapping[str, Any]) -> str:
    """The load in one line."""
    if load["loop"] == "closed":
        think = f" that think {load['think_s']:g} s" if load["think_s"] else ""
        return f"closed loop, {load['count']} users{think}: a slow server slows the load, and hides it"
    if "file" in load:
        pace = "" if load["speed"] == 1 else f", {load['speed']:g} times as fast"
        rate = f"{load['rate_per_s']:,.6g} requests/s on average"
        return f"open loop, {load['count']:,} requests at the moments of {load['file']}{pace}: {rate}"
    shape = "" if load["shape"] == "flat" else f", shape {load['shape']}"
    return f"open loop, {load['rate_per_s']:,.6g} requests/s, {load['arrivals']} arrivals{shape}"


def _rates(figures: Mapping[str, Any]) -> str:
    early = ", ended early" if figures["interrupted"] else ""
    return (
        f"{figures['answered_per_s']:,.1f} answered/s ({figures['images_per_s']:,.1f} images/s) in "
        f"{figures['seconds']:.1f} s{early}: {figures['right']:,} right, {figures['failed']:,} failed"
    )


def _latency_table(figures: Mapping[str, Any], open_loop: bool) -> Table:
    table = Table("latency, ms", *COLUMNS, box=None)
    rows = [("from the intended moment" if open_loop else "from the sending", figures["latency"])]
    if open_loop:
        rows.append(("from the sending", figures["service"]))
    rows += [(f"priority {level}", times) for level, times in figures["by_priority"].items()]
    for name, times in rows:
        table.add_row(name, *(f"{times[key]:,.2f}" for key in COLUMNS.values()))
    return table


def _show_server(server: Mapping[str, Any], console: Console) -> None:
    if server["models"]:
        table = Table("server", "images", "batches", "images a batch", "queue ms", "compute ms", box=None)
        for model in server["models"]:
            parts, images, batches = model["parts_ms"], model["inferences"], model["executions"]
            means = (images / max(1, batches), parts["queue"], sum(parts.values()) - parts["queue"])
            counts = (f"{model['name']} {model['version']}", str(images), str(batches))
            table.add_row(*counts, *(f"{each:.2f}" for each in means))
        console.print(table)
    seen = [each["server"] for each in server["samples"] if each["server"]]
    if seen:
        cores = sum(each["cores"] for each in seen) / len(seen)
        last = seen[-1]
        growth = f", {server['memory_growth']:+.1%} over the run" if server["memory_growth"] is not None else ""
        console.print(
            f"server: {cores:.2f} cores, {last['memory_mib']:,.0f} MiB{growth}, {last['descriptors']} descriptors"
        )
    if server["note"]:
        console.print(f"[yellow]{escape(server['note'])}[/]")


def _show_generator(generator: Mapping[str, Any], console: Console) -> None:
    lag = generator["lag"]
    console.print(
        f"generator: {generator['cores']:.0%} of a core, late by {lag['p50_ms']:.2f} ms (p50), "
        f"{lag['p99_ms']:.2f} ms (p99), {lag['max_ms']:.2f} ms (max)"
    )
    for limit in generator["limits"]:
        console.print(f"[bold red]the generator was the bottleneck: {escape(limit)}[/]")
