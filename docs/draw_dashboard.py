"""Grafana's dashboard as a picture, where there is no Grafana: a Prometheus answers the dashboard's own queries.

python docs/draw_dashboard.py docs/dashboard.png --prometheus http://127.0.0.1:9090 --minutes 5
"""

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet_triton.common.command import Parser, UserError, finish, positive_float

DASHBOARD = Path(__file__).parents[1] / "docker/grafana/dashboard.json"
# Grafana's, https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
GRID_WIDTH = 24
UNITS = {"percentunit": ("%", 100.0), "s": ("ms", 1000.0), "watt": ("W", 1.0), "none": ("", 1.0)}  # shown as, factor


Series = dict[str, dict[float, float]]  # by legend: minutes (0 is the end, the rest is negative) to values


def query_panel(prometheus: str, panel: dict, minutes: float, end_s: float) -> Series:
    """The series of a panel, without the values that are no numbers.

    https://prometheus.io/docs/prometheus/latest/querying/api/#range-queries

    Raises:
        UserError: Prometheus does not answer, or refuses a query.
    """
    times = {"start": end_s - 60 * minutes, "end": end_s, "step": max(1.0, minutes / 2)}
    series = {}
    for target in panel["targets"]:
        fields = urllib.parse.urlencode({"query": target["expr"], **times})
        try:
            with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{fields}", timeout=10) as reply:
                found = json.load(reply)["data"]["result"]
        except OSError as error:
            raise UserError(f"{prometheus}: {error}: name a running Prometheus with --prometheus") from error
        for each in found:
            values = {(at - end_s) / 60: float(value) for at, value in each["values"] if math.isfinite(float(value))}
            if values:
                series[_fill_in(target["legendFormat"], each["metric"])] = values
    return series


def _fill_in(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), legend)


def draw(prometheus: str, minutes: float, output: Path) -> None:
    """Draw every panel at its place in the grid; a panel without data says so.

    Raises:
        UserError: Prometheus does not answer.
        OSError: the file cannot be written.
    """
    dashboard, end_s = json.loads(DASHBOARD.read_text()), time.time()
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = Figure(figsize=(16, (rows + 1) * 0.36), facecolor="#f4f5f5")
    for panel in dashboard["panels"]:
        axes = figure.add_axes(_place(panel["gridPos"], rows))
        axes.set_title(panel["title"], loc="left", fontsize=10)
        _draw_panel(axes, panel, query_panel(prometheus, panel, minutes, end_s), minutes)
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end_s))
    title = f"{dashboard['title']}: drawn from Prometheus with the dashboard's queries, {moment}"
    figure.text(0.5, 1 - 0.6 / (rows + 1), title, ha="center", fontsize=11)
    figure.savefig(output, dpi=90)


def _place(grid: dict[str, int], rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel's axes, as fractions of the figure, with room around them."""
    column, row = 1 / GRID_WIDTH, 1 / (rows + 1)
    bottom = 1 - (1 + grid["y"] + grid["h"]) * row
    return (grid["x"] + 0.9) * column, bottom + 1.3 * row, (grid["w"] - 1.1) * column, (grid["h"] - 2.2) * row


def _draw_panel(axes: Axes, panel: dict, series: Series, minutes: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit, factor = UNITS[defaults["unit"]]
    if series and panel["type"] != "stat":
        _draw_lines(axes, series, factor, stacked="stacking" in defaults.get("custom", {}))
        axes.set(xlim=(-minutes, 0), ylim=(0, None))
        axes.set_ylabel(unit, fontsize=8)
        return
    last = f"{list(next(iter(series.values())).values())[-1] * factor:.3g} {unit}" if series else "no data"
    axes.text(0.5, 0.4, last, ha="center", va="center", fontsize=22 if series else 10, transform=axes.transAxes)
    axes.set_axis_off()


def _draw_lines(axes: Axes, series: Series, factor: float, stacked: bool) -> None:
    if stacked:
        times = sorted(set.intersection(*map(set, series.values())))
        layers = [[values[at] * factor for at in times] for values in series.values()]
        axes.stackplot(times, layers, labels=list(series), alpha=0.6)
    else:
        for name, values in series.items():
            axes.plot(list(values), [value * factor for value in values.values()], label=name)
    axes.grid(alpha=0.3)
    axes.set_xlabel("minutes", fontsize=8, labelpad=1)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, loc="upper left", framealpha=0.6)


def main(words: list[str]) -> int:
    """Exit code 0: drawn, 1: Prometheus or the file failed, 2: usage."""
    parser = Parser(prog="draw_dashboard", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="default: %(default)s")
    parser.add_argument("--minutes", type=positive_float, default=15.0, help="up to now (default: %(default)g)")
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: draw(options.prometheus, options.minutes, options.output))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
