"""Rounds to one line each: the median, with the lowest and the highest rate."""

from statistics import median
from typing import Any

Rows = list[dict[str, Any]]


def summarise(rows: Rows) -> Rows:
    """A line a target and number of connections; every figure in it is the median of the rounds."""
    groups: dict[tuple[str, int], Rows] = {}
    for row in rows:
        groups.setdefault((row["target"], row["connections"]), []).append(row)
    return [_line(target, connections, group) for (target, connections), group in groups.items()]


def _line(target: str, connections: int, group: Rows) -> dict[str, Any]:
    rates = [row["images_per_s"] for row in group]
    figures = [name for name in group[0] if name not in ("target", "connections", "round")]
    medians = {name: median(row[name] for row in group) for name in figures}
    return {"target": target, "connections": connections, **medians, "lowest": min(rates), "highest": max(rates)}
