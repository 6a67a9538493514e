"""Charts of results, by matplotlib: narrow enough for a phone, in colours that the colour-blind tell apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from matplotlib.figure import Figure

from alexnet_triton.loadtest.observer import PARTS
from alexnet_triton.loadtest.recorder import QUANTILES
from alexnet_triton.loadtest.results import Json

# Okabe and Ito, Color Universal Design, 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SIZE_INCHES = (4.8, 3.3)
TAIL = np.concatenate((np.linspace(0, 88, 45), 100 - 10 ** np.linspace(1, -3, 81)))


class Chart:
    """A drawn figure: its file's name, what it shows, the words for who cannot see it, and the unit of its y axis."""

    def __init__(self, name: str, title: str, words: str, unit: str = "") -> None:
        self.name, self.title, self.words = name, title, words
        self.figure = Figure(SIZE_INCHES, layout="constrained")
        self.axes = self.figure.add_subplot()
        self.axes.set_ylabel(unit)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.grid(alpha=0.25)

    def finish(self, below: str, log: bool = False) -> "Chart":
        """With the words below the x axis, a logarithmic y axis where it is asked for, and a legend."""
        self.axes.set_xlabel(below)
        if log:
            self.axes.set_yscale("log")
            self.axes.yaxis.set_major_formatter("{x:g}")
            self.axes.yaxis.set_minor_formatter("")
        if self.axes.get_legend_handles_labels()[0]:
            self.figure.legend(loc="outside upper center", fontsize=8, frameon=False, ncols=2)
        return self


def _label(runs: Sequence[Json], number: int, text: str) -> str:
    return text if len(runs) == 1 else f"{('old', 'new')[number]}, {text}"


def latency_over_time(runs: Sequence[Json]) -> Chart | None:
    """Quantiles of each window; of two runs the medians and p99 alone."""
    chart = Chart("latency_over_time", "Latency over time", "Latency quantiles of each second of the run", "ms")
    for number, run in enumerate(runs):
        windows = run["measured"]["windows"]
        for position, name in enumerate(QUANTILES if len(runs) == 1 else ("p50", "p99")):
            colour = COLOURS[position if len(runs) == 1 else number]
            style = "-" if len(runs) == 1 or position else "--"
            values = _column(windows, QUANTILES[name])
            chart.axes.plot(_column(windows), values, style, color=colour, label=_label(runs, number, name))
    return chart.finish("seconds", log=True)


def rate_over_time(runs: Sequence[Json]) -> Chart | None:
    """Right answers and failures a second."""
    words = "Requests answered and failed in each second"
    chart = Chart("rate_over_time", "Requests over time", words, "requests/s")
    for number, run in enumerate(runs):
        windows = run["measured"]["windows"]
        for key, style, colour, text in (("per_s", "-", number, "right"), ("failed", ":", 1 - number, "failed")):
            values, label = _column(windows, key), _label(runs, number, text)
            if key == "per_s" or any(values):
                chart.axes.plot(_column(windows), values, style, color=COLOURS[colour], label=label)
    chart.axes.set_ylim(bottom=0)
    return chart.finish("seconds")


def distribution(runs: Sequence[Json]) -> Chart | None:
    """Latency by percentile, the tail spread out."""
    drawn = [run for run in runs if run["measured"]["latency"]["histogram"]]
    if not drawn:
        return None
    words = "Latency of the slowest requests, percentile by percentile"
    chart = Chart("distribution", "Latency by percentile", words, "ms")
    lines = (("latency", "-", "from the intended moment"), ("service", ":", "from the sending"))
    for number, run in enumerate(drawn):
        for name, style, text in lines:
            histogram = HdrHistogram.decode(run["measured"][name]["histogram"])
            values = [value / 1e3 for value in histogram.get_percentile_to_value_dict(TAIL.tolist()).values()]
            label = _label(runs, number, text)
            chart.axes.plot(1 / (1 - TAIL / 100), values, style, color=COLOURS[number], label=label)
    chart.axes.set_xscale("log")
    chart.axes.set_xticks([1, 10, 100, 1000, 10_000, 100_000], ["0", "90", "99", "99.9", "99.99", "99.999"])
    return chart.finish("percent of the requests", log=True)


def batch_sizes(runs: Sequence[Json]) -> Chart | None:
    """How many images were computed in batches of each size."""
    models = [model for model in _networks(runs[-1]) if model["batches"]]
    if not models:
        return None
    words = "Number of batches by their size"
    chart = Chart("batch_sizes", "Batches that the server formed", words, "batches")
    sizes = sorted({int(size) for model in models for size in model["batches"]})
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        heights = [model["batches"].get(str(size), 0) for size in sizes]
        places = [position + (number - (len(models) - 1) / 2) * width for position in range(len(sizes))]
        chart.axes.bar(places, heights, width, color=COLOURS[number], label=f"{model['name']} {model['version']}")
    chart.axes.set_xticks(range(len(sizes)), list(map(str, sizes)))
    return chart.finish("images in the batch")


def where_the_time_went(runs: Sequence[Json]) -> Chart | None:
    """The mean request: queue and computation of each model, and the rest."""
    rows = [_parts(run) for run in runs]
    if not all(rows):
        return None
    chart = Chart("where_the_time_went", "Where the time went", "Mean milliseconds of a request in each place")
    left = [0.0] * len(rows)
    for number, name in enumerate(dict.fromkeys(name for row in rows for name in row)):
        widths = [row.get(name, 0.0) for row in rows]
        chart.axes.barh(range(len(rows)), widths, 0.5, left, color=COLOURS[number % len(COLOURS)], label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    chart.axes.set_yticks(range(len(rows)), ["mean"] if len(rows) == 1 else ["old", "new"])
    chart.axes.set_ylim(-0.5, len(rows) - 0.5)
    return chart.finish("ms of a request")


def _parts(run: Json) -> dict[str, float]:
    parts = {}
    for model in _networks(run):
        parts[f"{model['name']}: queue"] = model["parts_ms"]["queue"]
        parts[f"{model['name']}: compute"] = sum(model["parts_ms"][part] for part in PARTS[1:])
    if parts:
        rest_ms = run["measured"]["latency"]["mean_ms"] - sum(parts.values())
        parts["network, HTTP or gRPC, generator"] = max(0.0, rest_ms)
    return parts


def _networks(run: Json) -> list[Json]:
    """The models of a run, without the ensemble that they make up."""
    ensemble = run["target"]["model"] if run["target"]["steps"] else None
    return [each for each in run["measured"]["server"]["models"] if each["name"] != ensemble]


def usage(key: str, title: str, unit: str) -> Callable[[Sequence[Json]], Chart | None]:
    """A chart of a field of `sampler.Usage`, of server and generator."""

    def draw(runs: Sequence[Json]) -> Chart | None:
        if not all(run["measured"]["server"]["samples"] for run in runs):
            return None
        chart = Chart(key, title, f"{title} of server and load generator", unit)
        for number, run in enumerate(runs):
            for position, side in enumerate(("server", "generator")):
                samples = [each for each in run["measured"]["server"]["samples"] if each[side]]
                line = (_column(samples, "at_s"), [each[side][key] for each in samples], ("-", "--")[number])
                if samples:
                    chart.axes.plot(*line, color=COLOURS[position], label=_label(runs, number, side))
        chart.axes.set_ylim(bottom=0)
        return chart.finish("seconds")

    return draw


def throughput_against_latency(sweep: Json, key: str, name: str) -> Chart:
    """A quantile of each point of a sweep, a line a setting."""
    words = f"{name} at each rate of the sweep"
    chart = Chart(f"throughput_{key}", f"Throughput against {name}", words, f"{name}, ms")
    for number, series in enumerate(sweep["series"]):
        points = [each["measured"] for each in series["points"] if each["measured"]["latency"]["count"]]
        line = (_column(points, "answered_per_s"), [each["latency"][key] for each in points], "o-")
        chart.axes.plot(*line, markersize=4, color=COLOURS[number % len(COLOURS)], label=series["name"])
    for objective in sweep["objectives"].split(","):
        if objective.startswith(f"{name}=") and objective.endswith("ms"):
            chart.axes.axhline(float(objective.partition("=")[2][:-2]), color="grey", linewidth=1, linestyle=":")
    chart.axes.set_xlim(left=0)
    return chart.finish("answered requests/s", log=True)


def pairs(comparison: Json) -> Chart:
    """Every pair's difference, and the interval."""
    words = "Difference of each pair of runs, the estimate and its interval"
    chart = Chart("pairs", "Pair by pair", words, "new takes longer by %")
    found, ratios, axes = comparison["estimate"], comparison["ratios"], chart.axes
    axes.axhspan(100 * (found["low"] - 1), 100 * (found["high"] - 1), color=COLOURS[5], alpha=0.35, label="interval")
    axes.axhline(100 * (found["ratio"] - 1), color=COLOURS[0], label="estimate")
    axes.plot(range(1, len(ratios) + 1), [100 * (each - 1) for each in ratios], "o", color=COLOURS[1], label="pair")
    if comparison["limit"] is not None:
        axes.axhline(100 * comparison["limit"], color="grey", linestyle=":", label="limit")
    axes.axhline(0, color="black", linewidth=0.8)
    return chart.finish("pair of runs")


def _column(rows: Sequence[Mapping[str, Any]], key: str = "start_s") -> list[float]:
    return [each[key] for each in rows]


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
