"""The chart's autoscaler, simulated on measured service times: `python -m docs.autoscale`.

The network of a published repository is timed on this machine, batch by batch. The queues of its pods are simulated
request by request (`queues.py`), which `--validate` compares with three real Tritons behind the gateway
(`real_queues.py`). Hours of thousands of pods are simulated second by second (`simulate`): what the pods cannot answer
waits, and each second's answers take that wait and the latencies of such a utilisation, as the queues have it. The
number of pods follows Kubernetes' algorithm (`Autoscaler`), with the values of the rendered chart.
"""

import argparse
import math
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from alexnet_triton.common.command import Parser, finish
from alexnet_triton.common.files import write_json
from alexnet_triton.common.provenance import describe_run
from docs.queues import QUANTILES, UTILISATIONS, Profile, build_profile, measure_service
from docs.real_queues import INSTANCES, SECONDS, validate
from tests.kubernetes.chart import CHART, Document, find, render, values, with_value

# ---- Kubernetes' autoscaler

SYNC_S, TOLERANCE = 15, 0.1  # --horizontal-pod-autoscaler-sync-period and -tolerance, their defaults


class Autoscaler:
    """The algorithm of a HorizontalPodAutoscaler with one External metric of the type AverageValue.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/#algorithm-details, and
    pkg/controller/podautoscaler of Kubernetes 1.34 for what that page leaves open: an External metric is compared with
    all pods of the Deployment, ready or not, because it is nobody's in particular; policies count from the pods that
    there were at the beginning of their period; of several policies the one that changes most counts.
    """

    def __init__(self, spec: Document) -> None:
        """`spec` is the rendered object's."""
        (metric,) = spec["metrics"]
        self._target = float(metric["external"]["target"]["averageValue"])
        self._least, self._most = spec["minReplicas"], spec["maxReplicas"]
        self._up, self._down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def decide(self, now: float, pods: int, work: float | None) -> int:
        """The number of pods from now on. `work` is the metric's sum over all pods, None where it is missing."""
        if not self._recommended:
            self._recommended.append((now, pods))
        if work is None:
            return pods
        wanted = self._stabilize(now, pods, self._proposal(pods, work))
        limited = max(self._least, min(self._most, self._limit(now, pods, wanted)))
        if limited != pods:
            self._changes.append((now, limited - pods))
        return limited

    def _proposal(self, pods: int, work: float) -> int:
        """Unchanged within the tolerance."""
        if abs(work / (self._target * pods) - 1) <= TOLERANCE:
            return pods
        return math.ceil(work / self._target)

    def _stabilize(self, now: float, pods: int, proposal: int) -> int:
        """Up to the least, and down to the most, that was recommended within each direction's window."""
        up_s, down_s = (each["stabilizationWindowSeconds"] for each in (self._up, self._down))
        self._recommended.append((now, proposal))
        while self._recommended[0][0] < now - max(up_s, down_s):
            self._recommended.popleft()
        least = min([proposal, *(count for at, count in self._recommended if at > now - up_s)])
        most = max([proposal, *(count for at, count in self._recommended if at > now - down_s)])
        return min(max(pods, least), most)

    def _limit(self, now: float, pods: int, wanted: int) -> int:
        if wanted > pods:
            return max(pods, min(wanted, max(self._bound(now, pods, each, +1) for each in self._up["policies"])))
        if wanted < pods:
            return min(pods, max(wanted, min(self._bound(now, pods, each, -1) for each in self._down["policies"])))
        return pods

    def _bound(self, now: float, pods: int, policy: Document, sign: int) -> int:
        before = pods - sum(change for at, change in self._changes if at > now - policy["periodSeconds"])
        if policy["type"] == "Pods":
            return before + sign * policy["value"]
        changed = before * (100 + sign * policy["value"]) / 100  # exact where the result is whole
        return math.ceil(changed) if sign > 0 else int(changed)


# ---- hours of many pods, second by second

SCRAPE_S, RATE_S = 15, 60  # of Prometheus, and the window of the chart's query
START_S, SLOW_START_S = 30, 60  # from the decision for a pod to its readiness: scheduling, copying the models, Triton
KNOWN_S = 18  # until gateways know a ready pod, on average: half of the DNS's 30 s and the gateway's 5 s
GRACE_S, EVICTION_S = 40, 300  # Kubernetes' defaults: until a node counts as lost, and until its pods are made anew


@dataclass(frozen=True)
class Scenario:
    """Requests of each second in units of what a pod answers at most, and what happens to pods.

    Attributes:
        load: float64 [seconds].
        start_s: from the decision for a pod to its readiness.
        lost: second and share of the pods of a node that is lost.
    """

    name: str
    load: np.ndarray
    start_s: int = START_S
    lost: tuple[int, float] | None = None


def scenarios(pods: int) -> list[Scenario]:
    """For a service that so many pods answer at half of their utmost before it grows."""
    base = pods / 2
    spike = np.full(3600, base)
    spike[600:1800] = 10 * base
    return [
        Scenario("a day", day(pods)),
        Scenario("ten times", spike),
        Scenario("a slow start", spike, start_s=SLOW_START_S),
        Scenario("a node lost", np.full(3600, base), lost=(600, 1 / 3)),
    ]


def day(pods: int, seed: int = 0) -> np.ndarray:
    """A night at a fifth of the noon, and minutes that differ by a tenth."""
    seconds = np.arange(86_400)
    noon = pods / 2 * (0.6 - 0.4 * np.cos(2 * np.pi * seconds / 86_400))
    minutes = np.random.default_rng(seed).lognormal(0, 0.1, 1440)
    return noon * np.repeat(minutes, 60)


class Fleet:
    """Pods that start, are known, and go: how many answer at a second, and how many there are."""

    def __init__(self, pods: int, start_s: int) -> None:
        self.wanted = self.serving = pods
        self._start_s = start_s
        self._coming: deque[tuple[int, int]] = deque()  # the second from which so many more answer
        self._missing = 0  # lost with a node, and not made anew yet

    def resize(self, second: int, pods: int) -> None:
        """A pod that goes answers until no gateway knows it. Those that do not answer yet go first."""
        more, self.wanted = pods - self.wanted, pods
        if more > 0:
            self._coming.append((second + self._start_s + KNOWN_S, more))
        while more < 0 and self._coming:
            due, coming = self._coming.pop()
            if coming + more > 0:
                self._coming.append((due, coming + more))
            more = min(0, more + coming)
        self.serving = max(0, self.serving + min(0, more))

    def lose(self, second: int, share: float) -> None:
        """A node goes with its pods; they are made anew when Kubernetes has given it up."""
        gone = round(share * self.serving)
        self.serving -= gone
        self._coming.appendleft((second + GRACE_S + EVICTION_S + self._start_s + KNOWN_S, gone))

    def advance(self, second: int) -> None:
        ready = [each for each in self._coming if each[0] <= second]
        self.serving += sum(count for _, count in ready)
        self._coming = deque(each for each in self._coming if each[0] > second)


@dataclass(frozen=True)
class Course:
    """What happened: arrays of each second, and the whole in figures."""

    name: str
    pods: np.ndarray
    slowest_s: np.ndarray
    p99_s: float
    refused: float
    pod_hours: float
    idle: float

    def figures(self) -> dict[str, float]:
        """For the table."""
        return {name: getattr(self, name) for name in ("p99_s", "refused", "pod_hours", "idle")}


class Hours:
    """A fleet under an autoscaler, a second at a time. Refused is what finds a full queue: MAX_WAIT of all answers."""

    def __init__(self, profile: Profile, spec: Document, scenario: Scenario) -> None:
        self._profile, self._scenario = profile, scenario
        self._scaler = Autoscaler(spec)
        self._fleet = Fleet(_steady(profile, spec, float(scenario.load[0])), scenario.start_s)
        self._at = UTILISATIONS.tolist()
        self._waiting = 0.0  # in the pods, beside the backlog
        self._backlog = 0.0  # that the pods did not answer in the seconds before, in seconds of a pod
        self._lately: deque[float] = deque(maxlen=RATE_S)  # requests that were computed
        self._seen: float | None = None  # by the autoscaler
        self.wait_s: list[float] = []
        self.index: list[int] = []  # of the utilisation; one past the last where every batch is full
        self.refused: list[float] = []
        self.pods: list[int] = []

    def run(self) -> Course:
        for second, load in enumerate(self._scenario.load.tolist()):
            self._fleet.advance(second)
            if self._scenario.lost and second == self._scenario.lost[0]:
                self._fleet.lose(second, self._scenario.lost[1])
            self._answer(load, self._fleet.serving)
            self.pods.append(self._fleet.wanted)
            if second % SCRAPE_S == SCRAPE_S - 1:
                self._scrape()
            if second % SYNC_S == 0:
                self._fleet.resize(second, self._scaler.decide(second, self._fleet.wanted, self._seen))
        return self._sum_up()

    def _answer(self, load: float, serving: int) -> None:
        pods = max(serving, 1e-9)
        self.wait_s.append(min(self._backlog / pods, self._profile.service.max_wait_s))
        backlog = max(0.0, self._backlog + load - pods)
        self._backlog = min(backlog, self._profile.service.max_wait_s * pods)
        self.refused.append(backlog - self._backlog)
        share = load / pods
        full = backlog > 0 or share > self._at[-1]
        self.index.append(len(self._at) if full else bisect_left(self._at, share))
        waiting, computed = self._profile.requests(self._at[-1] if full else share)
        self._waiting = pods * waiting
        self._lately.append(pods * computed)

    def _scrape(self) -> None:
        """What the chart's query gives: requests that wait now, and those computed in the last minute."""
        self._seen = self._backlog * self._profile.service.rate + self._waiting + sum(self._lately) / len(self._lately)

    def _sum_up(self) -> Course:
        kinds, kind = np.unique(np.stack([self.index, self.wait_s], 1), axis=0, return_inverse=True)
        kind = kind.ravel()
        full = np.full((1, len(QUANTILES)), self._profile.service.batch_s[-1])
        latency_s = np.concatenate([self._profile.latency_s, full])[kinds[:, 0].astype(int)] + kinds[:, 1:]
        load, pods = self._scenario.load, np.array(self.pods)
        answered = load - np.array(self.refused)
        p99_s = _weighted_quantile(latency_s, np.bincount(kind, answered), 0.99)
        paid = float(pods.sum())
        refused, idle = 1 - float(answered.sum() / load.sum()), 1 - float(answered.sum()) / paid
        return Course(self._scenario.name, pods, latency_s[kind, -1], p99_s, refused, paid / 3600, idle)


def _weighted_quantile(rows: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Of values, float64 [rows, n], of which each row's have its weight."""
    flat, each = rows.ravel(), np.repeat(weights, rows.shape[1])
    order = np.argsort(flat)
    total = each[order].cumsum()
    return float(flat[order[np.searchsorted(total, share * total[-1])]])


def simulate(profile: Profile, spec: Document, scenario: Scenario) -> Course:
    """A scenario under the autoscaler of a rendered specification."""
    return Hours(profile, spec, scenario).run()


def _steady(profile: Profile, spec: Document, load: float) -> int:
    """The fewest pods that the autoscaler is content with."""
    target = float(spec["metrics"][0]["external"]["target"]["averageValue"])
    pods = max(spec["minReplicas"], math.ceil(load / UTILISATIONS[-1]))
    while pods < spec["maxReplicas"] and sum(profile.requests(load / pods)) > target:
        pods += max(1, pods // 100)
    return min(pods, spec["maxReplicas"])


# ---- the chart's values, and others

SIZES = (3, 300)  # pods before a spike of ten times
UP, DOWN = "autoscaling.scaleUp", "autoscaling.scaleDown"
# Each makes, of the chart's requestsPerPod, the values that are changed.
ALTERNATIVES: dict[str, Callable[[int], dict[str, int]]] = {
    "the chart": lambda per_pod: {},
    "half requestsPerPod": lambda per_pod: {"cpu.requestsPerPod": per_pod // 2},
    "twice requestsPerPod": lambda per_pod: {"cpu.requestsPerPod": 2 * per_pod},
    "four times requestsPerPod": lambda per_pod: {"cpu.requestsPerPod": 4 * per_pod},
    "up twice in 15 s": lambda per_pod: {f"{UP}.percent": 100, f"{UP}.periodSeconds": 15},
    "up twice in 90 s": lambda per_pod: {f"{UP}.percent": 100, f"{UP}.periodSeconds": 90},
    "up four times in 60 s": lambda per_pod: {f"{UP}.percent": 300, f"{UP}.periodSeconds": 60},
    "down in 2 minutes": lambda per_pod: {f"{DOWN}.stabilizationSeconds": 120},
    "down as Kubernetes": lambda per_pod: {
        f"{DOWN}.percent": 100,
        f"{DOWN}.periodSeconds": 15,
        f"{DOWN}.stabilizationSeconds": 300,
    },
}


def rendered_spec(size: int, changes: dict[str, Any]) -> Document:
    """The HorizontalPodAutoscaler of the chart with some values changed, with room for a service of a size."""
    given = values("cpu prometheus-adapter")
    for name, value in {**changes, "autoscaling.maxReplicas": 40 * size}.items():
        given = with_value(given, name, value)
    return find(render(given), "HorizontalPodAutoscaler")["spec"]


def compare(profile: Profile) -> tuple[list[dict[str, Any]], dict[str, Course]]:
    """Rows of the table, and the courses at the largest size."""
    per_pod = yaml.safe_load((CHART / "values.yaml").read_text())["cpu"]["requestsPerPod"]
    rows, courses = [], {}
    for size in SIZES:
        for name, change in ALTERNATIVES.items():
            spec = rendered_spec(size, change(per_pod))
            for scenario in scenarios(size):
                course = simulate(profile, spec, scenario)
                most = int(course.pods.max())
                rows.append({"values": name, "scenario": scenario.name, "pods": [size, most], **course.figures()})
                if size == SIZES[-1]:
                    courses[f"{name}: {scenario.name}"] = course
    return rows, courses


SHOWN = {"four times requestsPerPod": "C1", "up twice in 15 s": "C2", "down as Kubernetes": "C3", "the chart": "black"}


def draw(courses: dict[str, Course], file: Path) -> None:
    """Pods and latency, of the chart's values and of others, at the largest size."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(2, 3, sharex="col", sharey="row")
    for above, below, scenario in zip(*panels, ("ten times", "a node lost", "a day"), strict=True):
        unit, divisor = ("hours", 3600) if scenario == "a day" else ("minutes", 60)
        load = next(each for each in scenarios(SIZES[-1]) if each.name == scenario).load
        step = len(load) // 240  # points enough for the eye: the most of each
        at = np.arange(240) * step / divisor
        above.fill_between(at, _most(load, step), 1, color="0.85", label="busy all the time", linewidth=0)
        for name, colour in SHOWN.items():
            course = courses[f"{name}: {scenario}"]
            above.plot(at, _most(course.pods, step), colour, label=name, linewidth=1.5)
            below.plot(at, _most(course.slowest_s, step), colour, linewidth=1.2)
        above.set_title(scenario)
        above.set_yscale("log")
        above.set_ylim(bottom=SIZES[-1] / 10)
        below.set_yscale("log")
        below.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_major_formatter("{x:,.0f}")
        below.set_xlabel(unit)
    panels[0, 0].set_ylabel("pods")
    panels[1, 0].set_ylabel("p99.5 in seconds")
    panels[0, 1].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def _most(values: np.ndarray, step: int) -> np.ndarray:
    return values[: len(values) // step * step].reshape(-1, step).max(axis=1)[:240]


# ---- the command


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the simulation is more than 15 % off or something failed, 2 usage."""
    parser = Parser(prog="python -m docs.autoscale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--repository", type=Path, default=Path("artifacts/model_repository"), help="whose network is timed"
    )
    parser.add_argument("--validate", action="store_true", help="run three real Tritons and compare")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load with --validate (default: 60)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the largest size")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    work = _validate if options.validate else _compare
    return finish("autoscale", lambda: work(options))


def _validate(options: argparse.Namespace) -> int:
    rows = validate(measure_service(options.repository, INSTANCES), options.seconds)
    print(f"{'load':18}{'requests':>9}{'p99 s: real':>13}{'simulated':>11}{'refused: real':>15}{'simulated':>11}")
    for row in rows:
        p99_s, refused = row["p99_s"], row["refused"]
        print(
            f"{row['load']:18}{row['requests']:9,}{p99_s[0]:13.2f}{p99_s[1]:11.2f}{refused[0]:15.1%}{refused[1]:11.1%}"
            f"  {'agree' if row['agree'] else 'more than 15 % apart'}"
        )
    if options.json:
        write_json(options.json, {"environment": describe_run(("numpy", "openvino")), "validation": rows})
    return int(not all(row["agree"] for row in rows))


def _compare(options: argparse.Namespace) -> None:
    cores = yaml.safe_load((CHART / "values.yaml").read_text())["cpu"]["cores"]
    profile = build_profile(measure_service(options.repository, cores))
    print(f"a pod answers {profile.service.rate:.0f} images/s; requests in it at a utilisation of")
    print("  ".join(f"{share:.0%} {sum(profile.requests(share)):.1f}" for share in UTILISATIONS.tolist()[1::2]))
    rows, courses = compare(profile)
    print(f"{'values':26}{'scenario':14}{'pods':>12}{'p99 s':>8}{'refused':>9}{'pod hours':>11}{'idle':>6}")
    for row in rows:
        pods = f"{row['pods'][0]}-{row['pods'][1]:,}"
        print(
            f"{row['values']:26}{row['scenario']:14}{pods:>12}{row['p99_s']:8.2f}{row['refused']:9.2%}"
            f"{row['pod_hours']:11,.0f}{row['idle']:6.0%}"
        )
    if options.png:
        draw(courses, options.png)
    if options.json:
        service = asdict(profile.service)
        write_json(options.json, {"environment": describe_run(("numpy", "openvino")), "service": service, "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
