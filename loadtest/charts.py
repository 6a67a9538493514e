"""Charts of results, by matplotlib: narrow enough for a phone, in colours that the colour-blind tell apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet_triton.loadtest.observer import PARTS
from alexnet_triton.loadtest.recorder import QUANTILES
from alexnet_triton.loadtest.results import Json

# Okabe and Ito, Color Universal Design, 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SIZE_INCHES = (4.8, 3.3)
TAIL = np.concatenate((np.linspace(0, 90, 46), 100 - 10 ** np.linspace(1, -3, 81)))


@dataclass(frozen=True)
class Chart:
    """A drawn figure: its file's name, what it shows, and the words for who cannot see it."""

    name: str
    title: str
    figure: Figure
    words: str


def latency_over_time(runs: Sequence[Json]) -> Chart | None:
    """Quantiles of each window; of two runs the medians and p99 alone."""
    chart, axes = _figure("ms")
    lines = QUANTILES if len(runs) == 1 else ("p50", "p99")
    for number, run in enumerate(runs):
        windows = run["measured"]["windows"]
        for position, name in enumerate(lines):
            colour = COLOURS[position if len(runs) == 1 else number]
            label = name if len(runs) == 1 else f"{name}, {'old' if number == 0 else 'new'}"
            style = "-" if len(runs) == 1 or position else "--"
            axes.plot(_at(windows), [each[QUANTILES[name]] for each in windows], style, color=colour, label=label)
    _finish(axes, "seconds", log=True)
    return Chart("latency_over_time", "Latency over time", chart, "Latency quantiles of each second of the run")


def rate_over_time(runs: Sequence[Json]) -> Chart | None:
    """Right answers and failures a second."""
    chart, axes = _figure("requests/s")
    for number, run in enumerate(runs):
        windows = run["measured"]["windows"]
        label = "right" if len(runs) == 1 else ("old", "new")[number]
        axes.plot(_at(windows), [each["per_s"] for each in windows], color=COLOURS[number], label=label)
        if any(each["failed"] for each in windows):
            failed = [each["failed"] for each in windows]
            axes.plot(
                _at(windows), failed, ":", color=COLOURS[1 - number], label=f"failed {label if len(runs) > 1 else ''}"
            )
    axes.set_ylim(bottom=0)
    _finish(axes, "seconds")
    return Chart("rate_over_time", "Requests over time", chart, "Requests answered and failed in each second")


def distribution(runs: Sequence[Json]) -> Chart | None:
    """Latency by percentile, the tail spread out."""
    drawn = [run for run in runs if run["measured"]["latency"]["histogram"]]
    if not drawn:
        return None
    chart, axes = _figure("ms")
    for number, run in enumerate(drawn):
        for name, style in (("latency", "-"), ("service", ":")):
            histogram = HdrHistogram.decode(run["measured"][name]["histogram"])
            values = [histogram.get_value_at_percentile(each) / 1e3 for each in TAIL]
            label = {"latency": "from the intended moment", "service": "from the sending"}[name]
            label = label if len(runs) == 1 else f"{('old', 'new')[number]}, {label}"
            axes.plot(1 / (1 - TAIL / 100), values, style, color=COLOURS[number], label=label)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000, 10_000, 100_000], ["0", "90", "99", "99.9", "99.99", "99.999"])
    _finish(axes, "percent of the requests", log=True)
    return Chart(
        "distribution", "Latency by percentile", chart, "Latency of the slowest requests, percentile by percentile"
    )


def batch_sizes(runs: Sequence[Json]) -> Chart | None:
    """How many images were computed in batches of each size."""
    models = [model for model in runs[-1]["measured"]["server"]["models"] if len(model["batches"])]
    models = [model for model in models if model["name"] not in _ensembles(runs[-1])]
    if not models:
        return None
    chart, axes = _figure("batches")
    sizes = sorted({int(size) for model in models for size in model["batches"]})
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        heights = [model["batches"].get(str(size), model["batches"].get(size, 0)) for size in sizes]
        places = [position + (number - (len(models) - 1) / 2) * width for position in range(len(sizes))]
        axes.bar(places, heights, width, color=COLOURS[number], label=f"{model['name']} {model['version']}")
    axes.set_xticks(range(len(sizes)), list(map(str, sizes)))
    _finish(axes, "images in the batch")
    return Chart("batch_sizes", "Batches that the server formed", chart, "Number of batches by their size")


def where_the_time_went(runs: Sequence[Json]) -> Chart | None:
    """The mean request: queue and computation of each model, and the rest."""
    rows = [_parts(run) for run in runs]
    if not all(rows):
        return None
    chart, axes = _figure("")
    names = list(dict.fromkeys(name for row in rows for name in row))
    left = [0.0] * len(rows)
    for number, name in enumerate(names):
        widths = [row.get(name, 0.0) for row in rows]
        axes.barh(range(len(rows)), widths, 0.5, left, color=COLOURS[number % len(COLOURS)], label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), ["mean"] if len(rows) == 1 else ["old", "new"])
    axes.set_ylim(-0.5, len(rows) - 0.5)
    _finish(axes, "ms of a request")
    return Chart("where_the_time_went", "Where the time went", chart, "Mean milliseconds of a request in each place")


def _parts(run: Json) -> dict[str, float]:
    models = [each for each in run["measured"]["server"]["models"] if each["name"] not in _ensembles(run)]
    parts = {}
    for model in models:
        parts[f"{model['name']}: queue"] = model["parts_ms"]["queue"]
        parts[f"{model['name']}: compute"] = sum(model["parts_ms"][part] for part in PARTS[1:])
    if parts:
        parts["network, HTTP or gRPC, generator"] = max(
            0.0, run["measured"]["latency"]["mean_ms"] - sum(parts.values())
        )
    return parts


def _ensembles(run: Json) -> set[str]:
    return {run["target"]["model"]} if run["target"]["steps"] else set()


def usage(key: str, title: str, unit: str) -> Callable[[Sequence[Json]], Chart | None]:
    """A chart of a field of `sampler.Usage`, of server and generator."""

    def draw(runs: Sequence[Json]) -> Chart | None:
        if not all(run["measured"]["server"]["samples"] for run in runs):
            return None
        chart, axes = _figure(unit)
        for number, run in enumerate(runs):
            suffix = "" if len(runs) == 1 else f", {('old', 'new')[number]}"
            for position, side in enumerate(("server", "generator")):
                samples = [each for each in run["measured"]["server"]["samples"] if each[side]]
                if samples:
                    line = (_at(samples, "at_s"), [each[side][key] for each in samples])
                    axes.plot(*line, ("-", "--")[number], color=COLOURS[position], label=side + suffix)
        axes.set_ylim(bottom=0)
        _finish(axes, "seconds")
        return Chart(key, title, chart, f"{title} of server and load generator")

    return draw


def throughput_against_latency(sweep: Json, key: str, name: str) -> Chart:
    """A quantile of each point of a sweep, a line a setting."""
    chart, axes = _figure(f"{name}, ms")
    for number, series in enumerate(sweep["series"]):
        points = [each for each in series["points"] if each["measured"]["latency"]["count"]]
        rates = [each["measured"]["answered_per_s"] for each in points]
        latencies = [each["measured"]["latency"][key] for each in points]
        axes.plot(rates, latencies, "o-", markersize=4, color=COLOURS[number % len(COLOURS)], label=series["name"])
    for objective in sweep["objectives"].split(","):
        if objective.startswith(f"{name}=") and objective.endswith("ms"):
            axes.axhline(float(objective.partition("=")[2][:-2]), color="grey", linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    _finish(axes, "answered requests/s", log=True)
    return Chart(f"throughput_{key}", f"Throughput against {name}", chart, f"{name} at each rate of the sweep")


def pairs(comparison: Json) -> Chart:
    """Every pair's difference, and the interval."""
    chart, axes = _figure("new takes longer by %")
    found, ratios = comparison["estimate"], comparison["ratios"]
    axes.axhspan(100 * (found["low"] - 1), 100 * (found["high"] - 1), color=COLOURS[5], alpha=0.35, label="interval")
    axes.axhline(100 * (found["ratio"] - 1), color=COLOURS[0], label="estimate")
    axes.plot(range(1, len(ratios) + 1), [100 * (each - 1) for each in ratios], "o", color=COLOURS[1], label="pair")
    if comparison["limit"] is not None:
        axes.axhline(100 * comparison["limit"], color="grey", linestyle=":", label="limit")
    axes.axhline(0, color="black", linewidth=0.8)
    _finish(axes, "pair of runs")
    return Chart("pairs", "Pair by pair", chart, "Difference of each pair of runs, the estimate and its interval")


RUN_CHARTS = (
    latency_over_time,
    rate_over_time,
    distribution,
    batch_sizes,
    where_the_time_went,
    usage("cores", "Processor", "cores"),
    usage("memory_mib", "Memory", "MiB"),
    usage("descriptors", "Descriptors", "open"),
)


def _figure(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _finish(axes: Axes, below: str, log: bool = False) -> None:
    axes.set_xlabel(below)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside upper center", fontsize=8, frameon=False, ncols=2)


def _at(rows: Sequence[Mapping[str, Any]], key: str = "start_s") -> list[float]:
    return [each[key] for each in rows]
