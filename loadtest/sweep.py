"""alexnet-triton loadtest sweep: the most load that keeps the objectives, on one server or over a server's settings."""

import argparse
import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from alexnet_triton.common.provenance import describe_command
from alexnet_triton.loadtest.arguments import (
    Parser,
    add_output,
    add_target,
    add_times,
    client_config,
    output_folder,
    percent,
    setup_of,
    users_of,
)
from alexnet_triton.loadtest.cases import Target, prepare
from alexnet_triton.loadtest.engine import Users
from alexnet_triton.loadtest.errors import EndedError, SettingError
from alexnet_triton.loadtest.measure import Measured, measure
from alexnet_triton.loadtest.objectives import Judged, Objective, judge, parse_objectives
from alexnet_triton.loadtest.results import Json, prepare_folder, wrap
from alexnet_triton.loadtest.run import INTERRUPTED, MISSED, OK, describe_target, save
from alexnet_triton.loadtest.summary import error_console, out_console, tracked
from alexnet_triton.loadtest.variants import Setting, describe_setting, fresh_server, parse_settings
from alexnet_triton.loadtest.workload import MOST_PER_S, Plan


@dataclass(frozen=True)
class Point:
    """One load of a sweep: requests a second, or users."""

    load: float
    met: bool
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


async def find_knee(
    measure: Measure, objectives: tuple[Objective, ...], where: Range, seen: Callable[[Point], None]
) -> tuple[list[Point], float | None]:
    """All points in the order of their load, and the greatest load that met every objective; None where none did.

    `seen` hears of each point when it is measured.
    """
    points: list[Point] = []

    async def met(load: float) -> bool:
        measured = await measure(load)
        judged = judge(objectives, measured.objectives)
        points.append(Point(load, all(each.met for each in judged), judged, measured))
        seen(points[-1])
        return points[-1].met

    good, bad = await _double(met, where)
    while good is not None and bad is not None and (middle := _between(good, bad, where)) is not None:
        if await met(middle):
            good = middle
        else:
            bad = middle
    return sorted(points, key=lambda point: point.load), good


async def _double(met: Callable[[float], Awaitable[bool]], where: Range) -> tuple[float | None, float | None]:
    """The last load that met the objectives, and the first that did not."""
    good, load = None, where.low
    while await met(load):
        good = load
        if load >= where.high:
            return good, None
        load = min(2 * load, where.high)
    return good, load


def _between(good: float, bad: float, where: Range) -> float | None:
    """The next load to try, None when the two are near enough."""
    middle = math.sqrt(good * bad)
    if where.whole:
        middle = round(middle)
        return middle if good < middle < bad else None
    return round(middle, 2) if bad / good - 1 > where.precision else None


PAUSE_S = 1.0  # after a load that was too much, for what is left of it in the server


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser: Parser = commands.add_parser("sweep", help="the most load that keeps the objectives")
    group = parser.add_argument_group("sweep")
    group.add_argument("--over", choices=("rate", "users"), default="rate", help="what is raised (default: rate)")
    group.add_argument("--from", dest="low", type=float, metavar="LOAD", help="first (default: 25 a second, 1 user)")
    group.add_argument(
        "--to", dest="high", type=float, metavar="LOAD", help="at most (default: 10000 a second, 256 users)"
    )
    group.add_argument(
        "--precision", type=percent, default=0.05, metavar="5%%", help="of the knee's rate (default: 5%%)"
    )
    group.add_argument("--slo", default="p99=100ms,errors=0.1%", metavar="p99=100ms,...", help="as of run")
    group.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="with --repository: batching=off,on delay=0,5000 instances=1,2 decoders=1,2 threads=1,2 precision=int8",
    )
    add_times(parser, "6s", "1s")
    add_target(parser)
    add_output(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Sweep, save, show. 0: every setting met the objectives somewhere."""
    objectives = parse_objectives(arguments.slo)
    settings = parse_settings(arguments.vary)
    where = _range(arguments)
    if not objectives or (arguments.vary and not arguments.repository):
        raise SettingError("--slo names an objective or more; --vary wants the --repository to start servers on")
    folder = prepare_folder(output_folder(arguments))
    console = out_console()
    series: list[Json] = []
    with suppress(EndedError):
        for setting in settings:
            series.append(
                {
                    "name": describe_setting(setting),
                    "setting": dict(setting),
                    "knee": None,
                    "points": [],
                    "whole": False,
                }
            )
            _sweep(arguments, setting, objectives, where, series[-1], console)
    title = arguments.title or f"most {arguments.over} with {arguments.slo}"
    command = describe_command(["alexnet-triton", "loadtest", *arguments.words])
    result = wrap("sweep", command, title, over=arguments.over, objectives=arguments.slo, series=series)
    save(result, folder, arguments)
    for each in series:
        knee = "none" if each["knee"] is None else f"{each['knee']:,.5g}"
        console.print(f"[bold]{each['name']}[/]: most {arguments.over} with {arguments.slo}: {knee}")
    error_console().print(f"{folder}")
    if not all(each["whole"] for each in series):
        return INTERRUPTED
    return OK if all(each["knee"] is not None for each in series) else MISSED


def _range(arguments: argparse.Namespace) -> Range:
    users = arguments.over == "users"
    low, high = arguments.low or (1 if users else 25.0), arguments.high or (256 if users else 10_000.0)
    if not (0 < low <= high <= MOST_PER_S) or arguments.precision <= 0:
        raise SettingError(f"--from {low:g} --to {high:g}: give two loads, the lower first, and a --precision above 0")
    return Range(round(low), round(high), whole=True) if users else Range(low, high, arguments.precision)


def _sweep(
    arguments: argparse.Namespace,
    setting: Setting,
    objectives: tuple[Objective, ...],
    where: Range,
    series: Json,
    console: Console,
) -> None:
    """One setting's points, entered into `series` as they are measured."""
    console.print(f"[bold]{series['name']}[/]")

    def seen(point: Point) -> None:
        series["points"] = sorted([*series["points"], asdict(point)], key=lambda each: each["load"])
        series["knee"] = max((each["load"] for each in series["points"] if each["met"]), default=None)
        times = point.measured.latency
        word = "[green]met[/]" if point.met else "[red]missed[/]"
        limits = "".join(f", generator: {each}" for each in point.measured.generator.limits)
        console.print(
            f"  {point.load:9,.5g}  {point.measured.answered_per_s:9,.1f} answered/s  p50 {times.p50_ms:8,.2f} ms  "
            f"p99 {times.p99_ms:8,.2f} ms  {point.measured.error_share:.2%} failed  {word}{limits}",
            highlight=False,
        )

    with fresh_server(arguments, setting) as url:
        target = asyncio.run(_search(arguments, url, objectives, where, seen))
    series["target"], series["whole"] = describe_target(target, arguments), True


async def _search(
    arguments: argparse.Namespace, url: str | None, objectives: tuple[Objective, ...], where: Range, seen: Any
) -> Target:
    config = client_config(arguments, url)
    target, cases = await prepare(config, arguments.images, arguments.limit, arguments.seed, arguments.answers, tracked)

    async def measure_at(load: float) -> Measured:
        measured = await measure(target, cases, setup_of(arguments, _load(arguments, load)), arguments.seed)
        if measured.failed:
            await asyncio.sleep(PAUSE_S)
        if measured.interrupted:
            raise EndedError("ended by Ctrl-C")
        return measured

    await find_knee(measure_at, objectives, where, seen)
    return target


def _load(arguments: argparse.Namespace, load: float) -> Plan | Users:
    if arguments.over == "users":
        return users_of(arguments, int(load))
    return Plan(load, arguments.duration, arguments.warmup, "poisson")
