"""Grafana's dashboard as a picture, from a running Prometheus with the dashboard's own queries.

    python docker/draw_dashboard.py docs/dashboard.png --prometheus http://127.0.0.1:9090 --minutes 5

For where there is no Grafana. Panels without data, as those of a GPU on a machine that has none, say so.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "grafana/dashboard.json"
GRID_WIDTH = (
    24  # Grafana's, https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
)
SUFFIXES = {"percentunit": ("%", 100.0), "s": ("ms", 1000.0), "watt": ("W", 1.0), "none": ("", 1.0)}


@dataclass(frozen=True)
class Line:
    """One series: seconds before the end, and values."""

    name: str
    times_s: list[float]
    values: list[float]


def query(prometheus: str, expression: str, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
    """Prometheus' answer to a range query, https://prometheus.io/docs/prometheus/latest/querying/api/#range-queries.

    Raises:
        OSError: no answer, or a refusal, as for an expression that it cannot parse.
    """
    fields = {"query": expression, "start": start_s, "end": end_s, "step": step_s}
    with urllib.request.urlopen(
        f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(fields)}", timeout=10
    ) as reply:
        return json.load(reply)["data"]["result"]


def panel_lines(prometheus: str, panel: dict[str, Any], start_s: float, end_s: float, step_s: float) -> list[Line]:
    """All series of a panel, named by its legend; values that are no numbers are left out."""
    lines = []
    for target in panel["targets"]:
        for series in query(prometheus, target["expr"], start_s, end_s, step_s):
            points = [(at - end_s, float(value)) for at, value in series["values"] if math.isfinite(float(value))]
            if points:
                times, values = zip(*points, strict=True)
                lines.append(Line(_legend(target["legendFormat"], series["metric"]), list(times), list(values)))
    return lines


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template)


def draw(prometheus: str, minutes: float, output: Path) -> None:
    """Draw every panel at its place in the grid.

    Raises:
        OSError: Prometheus does not answer, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dashboard = json.loads(DASHBOARD.read_text())
    end_s = time.time()
    step_s = max(1.0, minutes / 2)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = pyplot.figure(figsize=(16, (rows + 1) * 0.36), facecolor="#f4f5f5")
    for panel in dashboard["panels"]:
        axes = figure.add_axes(_place(panel["gridPos"], rows))
        lines = panel_lines(prometheus, panel, end_s - 60 * minutes, end_s, step_s)
        axes.set_title(panel["title"], loc="left", fontsize=10)
        _draw_panel(axes, panel, lines, minutes)
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end_s))
    title = f"{dashboard['title']}: drawn from Prometheus with the dashboard's queries, {moment}"
    figure.text(0.5, 1 - 0.6 / (rows + 1), title, ha="center", fontsize=11)
    figure.savefig(output, dpi=90)
    pyplot.close(figure)


def _place(grid: dict[str, int], rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel's axes, as parts of the figure, with room for what stands around."""
    column, row = 1 / GRID_WIDTH, 1 / (rows + 1)
    bottom = 1 - (1 + grid["y"] + grid["h"]) * row
    return (grid["x"] + 0.9) * column, bottom + 1.3 * row, (grid["w"] - 1.1) * column, (grid["h"] - 2.2) * row


def _draw_panel(axes: Any, panel: dict[str, Any], lines: list[Line], minutes: float) -> None:
    unit, factor = SUFFIXES[panel["fieldConfig"]["defaults"]["unit"]]
    if not lines:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="grey", transform=axes.transAxes)
        axes.set_axis_off()
    elif panel["type"] == "stat":
        axes.text(0.5, 0.4, f"{lines[0].values[-1] * factor:.3g} {unit}", ha="center", va="center", fontsize=22)
        axes.set_axis_off()
    else:
        _draw_lines(axes, panel, lines, factor)
        axes.set_xlim(-minutes, 0)
        axes.set_ylabel(unit, fontsize=8)


def _draw_lines(axes: Any, panel: dict[str, Any], lines: list[Line], factor: float) -> None:
    if "stacking" in panel["fieldConfig"]["defaults"].get("custom", {}):
        times = sorted(set.intersection(*(set(line.times_s) for line in lines)))
        by_time = [dict(zip(line.times_s, line.values, strict=True)) for line in lines]
        layers = [[values[at] * factor for at in times] for values in by_time]
        axes.stackplot([at / 60 for at in times], layers, labels=[line.name for line in lines], alpha=0.6)
    else:
        for line in lines:
            axes.plot([at / 60 for at in line.times_s], [value * factor for value in line.values], label=line.name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("minutes", fontsize=8, labelpad=1)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, loc="upper left", framealpha=0.6)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 drawn, 1 could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="default %(default)s")
    parser.add_argument("--minutes", type=float, default=15.0, help="up to now (default %(default)g)")
    options = parser.parse_args(arguments)
    try:
        draw(options.prometheus, options.minutes, options.output)
    except OSError as error:
        print(f"draw_dashboard: {options.prometheus} or {options.output}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
