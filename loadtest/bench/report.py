"""Stages as pictures, in PNG."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_triton.loadtest.bench.config import BOUND, OURS, OURS_GRPC

# WAS alexnet_triton.loadtest.bench.report: Rounds to one line each: the median, with the lowest and the highest rate.


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


# WAS alexnet_triton.loadtest.bench.report: Results as a table for people, and as one JSON file whose stages can be measured one at a time.


HEADINGS = {"images_per_s": "images/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms"}
FILE_WIDTH = 120  # of a table that goes to no terminal
PACKAGES = ("nvidia-pytriton", "openvino", "pillow", "numpy")


def add_to_report(path: Path, stage: str, result: dict[str, Any]) -> None:
    """Put a stage's result into the file, in place of an earlier one; replaced in one step."""
    stages = json.loads(path.read_text())["stages"] if path.is_file() else {}
    stages[stage] = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **_machine(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps({"stages": stages}, indent=2) + "\n")
    new.replace(path)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "hardware": f"{model}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def show_report(stage: str, result: dict[str, Any]) -> None:
    """Print what a stage found."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    rows = result.get("summary", [])
    if rows:
        table = Table(title=stage, box=box.SIMPLE_HEAD)
        names = list(dict.fromkeys(name for row in rows for name in row))
        for name in names:
            table.add_column(HEADINGS.get(name, name), justify="left" if name == "target" else "right")
        for row in rows:
            table.add_row(*(_text(row.get(name, "")) for name in names))
        console.print(table)
    for name in [name for name in result if name not in ("rows", "summary", "ratios", "command", "images")]:
        console.print(f"{stage}: {name.replace('_', ' ')} {_text(result[name])}")
    for name, value in result.get("ratios", {}).items():
        console.print(f"{stage}: {_text(value)} {name}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return (
        f"{value:,.2f}"
        if isinstance(value, float) and abs(value) < 10
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )


mpl.use("agg")


OWN = {OURS: "#0b6e4f", OURS_GRPC: "#2fa37c"}
RATES = ("images_per_s", "lowest", "highest", "p99_ms")
OTHERS = ("#d1495b", "#edae49", "#66629b", "#8d99ae")


def draw_served(path: Path, result: dict[str, Any]) -> None:
    """Images a second over connections, a line a server; the bars span the lowest and the highest round."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in result["summary"]:
        lines.setdefault(row["target"], []).append(row)
    bound = lines.pop(BOUND, [])
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    others = iter(OTHERS)
    for target, rows in lines.items():
        rates = [row["images_per_s"] for row in rows]
        spread = [
            [row["images_per_s"] - row["lowest"] for row in rows],
            [row["highest"] - row["images_per_s"] for row in rows],
        ]
        colour = OWN.get(target) or next(others, "black")
        at = [str(row["connections"]) for row in rows]
        axes.errorbar(at, rates, yerr=spread, marker="o", capsize=3, color=colour, lw=2 if target in OWN else 1.4)
        axes.annotate(target, (at[-1], rates[-1]), (8, 0), textcoords="offset points", va="center", color=colour)
    for row in bound:
        axes.axhline(row["images_per_s"], ls="--", color="black", lw=1)
        axes.annotate(BOUND, (0, row["images_per_s"]), (0, 4), textcoords="offset points", fontsize=9)
    axes.set(ylim=(0, None), xlabel="connections", ylabel="images a second")
    axes.set_title(f"JPEG in, classes out ({result['images']})", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25)
    _write(figure, path)
    plt.close(figure)


def draw_tune(path: Path, result: dict[str, Any]) -> None:
    """Every setting that was tried, in order, and the one that was written."""
    rows = result["summary"]
    names = [", ".join(f"{key} {row[key]}" for key in row if key not in RATES) for row in rows]
    colours = [OWN[OURS] if name == result["written"] else OTHERS[-1] for name in names]
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.34 * len(rows)), layout="constrained")
    spread = [
        [row["images_per_s"] - row["lowest"] for row in rows],
        [row["highest"] - row["images_per_s"] for row in rows],
    ]
    rates = [row["images_per_s"] for row in rows]
    axes.barh([str(number) for number in range(len(rows))], rates, xerr=spread, color=colours, capsize=3)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="images a second, 64 connections", title="Settings tried, and the one written")
    axes.spines[["top", "right"]].set_visible(False)
    _write(figure, path)
    plt.close(figure)


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(new, format="png", dpi=120)
    new.replace(path)


PICTURES = {"served": draw_served, "tune": draw_tune}
