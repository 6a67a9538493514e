"""Stages as pictures, in PNG."""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from bench.served import BOUND, OURS, OURS_GRPC

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
