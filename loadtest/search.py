"""The most load that keeps the objectives: doubled until one breaks, then bisected."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loadtest.measure import Measured
from loadtest.objectives import Judged, Objective, judge


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
