"""The stage `served` as a picture: images a second over connections, a line a server, the bound above them."""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from bench.served import BOUND, OURS, OURS_GRPC

OWN = {OURS: "#0b6e4f", OURS_GRPC: "#2fa37c"}
OTHERS = ("#d1495b", "#edae49", "#66629b", "#8d99ae")


def draw(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG in one step; the bars span the lowest and the highest round."""
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


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(new, format="png", dpi=120)
    new.replace(path)
