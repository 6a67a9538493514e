"""alexnet-triton loadtest sweep: the most load that keeps the objectives, on one server or over a server's settings."""

import argparse
import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from alexnet_triton.common.command import Parser
from alexnet_triton.loadtest.arguments import add_shared_options, percent, prepare_target, setup_of
from alexnet_triton.loadtest.errors import EndedError, SettingError
from alexnet_triton.loadtest.measure import Measured, measure
from alexnet_triton.loadtest.report import save_and_show
from alexnet_triton.loadtest.results import (
    CODES,
    INTERRUPTED,
    Json,
    Judged,
    Objective,
    describe_target,
    judge,
    parse_objectives,
    prepare_folder,
    verdict,
)
from alexnet_triton.loadtest.summary import WORDS, out_console
from alexnet_triton.loadtest.variants import describe_setting, fresh_server, parse_settings
from alexnet_triton.loadtest.workload import MOST_PER_S, Plan, Users


@dataclass(frozen=True)
class Point:
    """One load of a sweep: requests a second, or users. `met` is None where the generator was the bottleneck."""

    load: float
    met: bool | None
    judged: list[Judged]
    measured: Measured


@dataclass(frozen=True)
class Range:
    """Where to look.

    Attributes:
        precision: the knee is known to this part of itself.
        whole: loads are whole numbers, as users are.
    """

    low: float
    high: float
    precision: float = 0.05
    whole: bool = False


Measure = Callable[[float], Awaitable[Measured]]


async def find_knee(measure: Measure, objectives: tuple[Objective, ...], where: Range) -> AsyncIterator[Point]:
    """Each point as it is measured. The knee is the greatest load that met every objective."""
    good: float | None = None
    bad: float | None = None
    load: float | None = where.low
    while load is not None:
        measured = await measure(load)
        judged = judge(objectives, measured.objectives)
        point = Point(load, verdict(judged, measured.generator.limits), judged, measured)
        yield point
        good, bad = (load, bad) if point.met else (good, load)
        load = _next_load(good, bad, where)


def _next_load(good: float | None, bad: float | None, where: Range) -> float | None:
    """Twice the last load that met the objectives, then between it and the first that did not; None at the end."""
    if good is None or (bad is None and good >= where.high):
        return None
    if bad is None:
        return min(2 * good, where.high)
    middle = math.sqrt(good * bad)
    if where.whole:
        middle = round(middle)
        return middle if good < middle < bad else None
    return round(middle, 2) if bad / good - 1 > where.precision else None


START: Json = {"knee": None, "points": (), "decided": True, "whole": False}  # of a setting's search
PAUSE_S = 1.0  # after a load that was too much, for what is left of it in the server


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser: Parser = commands.add_parser("sweep", help="the most load that keeps the objectives")
    add = parser.add_argument_group("sweep").add_argument
    add("--over", choices=("rate", "users"), default="rate", help="what is raised (default: rate)")
    add("--from", dest="low", type=float, metavar="LOAD", help="first (default: 25 a second, 1 user)")
    add("--to", dest="high", type=float, metavar="LOAD", help="at most (default: 10000 a second, 256 users)")
    add("--precision", type=percent, default=0.05, metavar="5%%", help="of the knee's rate (default: 5%%)")
    add("--slo", default="p99=100ms,errors=0.1%", metavar="p99=100ms,...", help="as of run")
    values = "batching=off,on delay=0,5000 instances=1,2 decoders=1,2 threads=1,2 precision=int8"
    add("--vary", action="append", default=[], metavar="NAME=VALUE,...", help=f"with --repository: {values}")
    add_shared_options(parser, "6s", "1s")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Sweep, save, show. 0: every setting met the objectives somewhere; 4: the generator ended a search."""
    objectives = parse_objectives(arguments.slo)
    settings = parse_settings(arguments.vary)
    where = _range(arguments)
    if not objectives or (arguments.vary and not arguments.repository):
        raise SettingError("--slo names an objective or more; --vary wants the --repository to start servers on")
    prepare_folder(arguments.output)
    series: list[Json] = []
    with suppress(EndedError, KeyboardInterrupt):  # the latter between two loads
        for setting in settings:
            name = describe_setting(setting)
            series.append({"name": name, "setting": setting, **START})
            out_console().print(f"[bold]{name}[/]")
            with fresh_server(arguments, setting) as url:
                asyncio.run(_search(arguments, url, objectives, where, series[-1]))
            series[-1]["whole"] = True
    if not any(each["points"] for each in series):
        raise EndedError("ended before a load was measured")
    title = f"most {arguments.over} with {arguments.slo}"
    save_and_show("sweep", arguments, title, _show, over=arguments.over, objectives=arguments.slo, series=series)
    if not all(each["whole"] for each in series):
        return INTERRUPTED
    if not all(each["decided"] for each in series):
        return CODES[None]
    return CODES[all(each["knee"] is not None for each in series)]


def _range(arguments: argparse.Namespace) -> Range:
    users = arguments.over == "users"
    low, high = arguments.low or (1 if users else 25.0), arguments.high or (256 if users else 10_000.0)
    if not (0 < low <= high <= MOST_PER_S) or arguments.precision <= 0:
        raise SettingError(f"--from {low:g} --to {high:g}: give two loads, the lower first, and a --precision above 0")
    return Range(round(low), round(high), whole=True) if users else Range(low, high, arguments.precision)


async def _search(
    arguments: argparse.Namespace, url: str | None, objectives: tuple[Objective, ...], where: Range, series: Json
) -> None:
    """Enter one setting's points into `series` as they are measured."""
    target, cases = await prepare_target(arguments, url)
    series["target"] = describe_target(target, arguments)

    async def measure_at(load: float) -> Measured:
        times = (arguments.duration, arguments.warmup)
        plan = Users(int(load), *times) if arguments.over == "users" else Plan(load, *times, "poisson")
        measured = await measure(target, cases, setup_of(arguments, plan), arguments.seed)
        if measured.failed:
            await asyncio.sleep(PAUSE_S)
        if measured.interrupted:
            raise EndedError("ended by Ctrl-C")
        return measured

    async for point in find_knee(measure_at, objectives, where):
        series["points"] = sorted([*series["points"], asdict(point)], key=lambda each: each["load"])
        series["knee"] = max((each["load"] for each in series["points"] if each["met"]), default=None)
        series["decided"] = series["decided"] and point.met is not None
        _show_point(point, out_console())


def _show_point(point: Point, console: Console) -> None:
    measured = point.measured
    limits = "".join(f", generator: {each}" for each in measured.generator.limits)
    console.print(
        f"  {point.load:9,.5g}  {measured.answered_per_s:9,.1f} answered/s  p50 {measured.latency.p50_ms:8,.2f} ms  "
        f"p99 {measured.latency.p99_ms:8,.2f} ms  {measured.failed:,} failed  {WORDS[point.met].strip()}{limits}"
    )


def _show(result: Json, console: Console) -> None:
    for each in result["series"]:
        knee = "none" if each["knee"] is None else f"{each['knee']:,.5g}"
        knee += "" if each["decided"] else ", or more: not decided, because the generator was the bottleneck"
        console.print(f"[bold]{each['name']}[/]: most {result['over']} with {result['objectives']}: {knee}")
