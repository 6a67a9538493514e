"""The simulated autoscaler: Kubernetes' algorithm on examples worked by hand, queues against what is known of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs import autoscale, queues, real_queues
from docs.autoscale import Autoscaler, Fleet, Scenario
from docs.queues import Service, poisson_arrivals, simulate_queues
from tests.serving.tiny import build_repository

LINEAR = Service(tuple(0.001 + 0.003 * n for n in range(1, 17)), instances=4, max_wait_s=0.25)
AT_ONCE = [{"type": "Percent", "value": 1000, "periodSeconds": 15}]


def scaler(
    target: int = 100, up: "list[dict] | None" = None, down: "list[dict] | None" = None, up_s: int = 0, down_s: int = 0
) -> Autoscaler:
    """With 1 to 1,000 pods."""
    spec: dict[str, Any] = {
        "minReplicas": 1,
        "maxReplicas": 1000,
        "metrics": [{"external": {"target": {"averageValue": str(target)}}}],
        "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": up_s, "policies": up or AT_ONCE},
            "scaleDown": {
                "stabilizationWindowSeconds": down_s,
                "policies": down or [{"type": "Percent", "value": 100, "periodSeconds": 15}],
            },
        },
    }
    return Autoscaler(spec)


# ---- https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/


@pytest.mark.parametrize(
    ("pods", "work", "wanted"),
    [
        (2, 400, 4),  # twice the target: doubled
        (2, 100, 1),  # half of it: halved
        (10, 1090, 10),  # within a tenth
        (10, 910, 10),
        (10, 1110, 12),  # rounded up
        (10, 850, 9),
        (3, None, 3),  # no figure: as it is
        (3, 0, 1),  # never below the least
        (600, 500_000, 1000),  # never above the most
    ],
)
def test_the_ratio_decides(pods: int, work: "float | None", wanted: int) -> None:
    assert scaler().decide(0, pods, work) == wanted


def test_pods_that_do_not_answer_yet_count() -> None:
    """An External metric is divided by all pods of the Deployment: those that start do not start others."""
    assert scaler().decide(0, 8, 800) == 8


def test_a_tenth_fewer_each_minute() -> None:
    """The documentation's example: of 80 pods 8 go in the first minute, of 72 then 7, rounded up to 8."""
    ours = scaler(down=[{"type": "Percent", "value": 10, "periodSeconds": 60}])
    pods, at_minutes = 80, []
    for second in range(0, 180, 15):
        pods = ours.decide(second, pods, 1000)
        if second % 60 == 0:
            at_minutes.append(pods)
    assert at_minutes == [72, 64, 57]


def test_of_two_policies_the_one_that_changes_most_counts() -> None:
    """The documentation's example: 4 pods or a tenth in a minute; a tenth is less from 40 pods on."""
    both = [{"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]
    assert scaler(down=both).decide(0, 80, 100) == 72
    assert scaler(down=both).decide(0, 30, 100) == 26


def test_a_step_up_is_counted_from_the_begin_of_its_period() -> None:
    ours = scaler(up=[{"type": "Percent", "value": 100, "periodSeconds": 60}])
    assert ours.decide(0, 10, 5000) == 20
    assert ours.decide(15, 20, 5000) == 20
    assert ours.decide(60, 20, 5000) == 40


def test_down_to_the_most_that_the_window_recommended() -> None:
    ours = scaler(down_s=300)
    assert ours.decide(0, 10, 800) == 10
    assert [ours.decide(second, 10, 300) for second in (15, 150, 285)] == [10, 10, 10]
    assert ours.decide(330, 10, 300) == 3


def test_up_to_the_least_that_the_window_recommended() -> None:
    ours = scaler(up_s=60)
    assert ours.decide(0, 10, 1000) == 10
    assert ours.decide(30, 10, 5000) == 10
    assert ours.decide(75, 10, 4000) == 40


# ---- queues


def test_a_lone_server_is_as_pollaczek_and_khinchine_say() -> None:
    """M/D/1 waits on average rho / (2 (1 - rho)) of a service."""
    service, rho = Service((1.0,), 1, math.inf), 0.7
    outcome = simulate_queues(poisson_arrivals(rho, 60_000), 1, service)
    assert np.mean(outcome.seconds) - 1 == pytest.approx(rho / (2 * (1 - rho)), rel=0.05)
    assert outcome.computed == pytest.approx(rho, rel=0.03)
    assert outcome.waiting == pytest.approx(rho * rho / (2 * (1 - rho)), rel=0.08)  # Little's law


def test_several_servers_wait_less() -> None:
    """M/D/4 at 0.8: the mean wait that Cosmetatos' approximation of the exact solution gives, Queueing Systems 1976."""
    servers, rho = 4, 0.8
    load = servers * rho
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) / (1 - rho)
    markovian_s = last / (sum(terms) + last) / (servers * (1 - rho))  # Erlang's C
    part = (1 - rho) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * rho * servers)
    outcome = simulate_queues(poisson_arrivals(load, 60_000), 1, Service((1.0,), servers, math.inf))
    assert np.mean(outcome.seconds) - 1 == pytest.approx(markovian_s / 2 * (1 + part), rel=0.08)


def test_what_has_waited_too_long_is_refused_and_nothing_else() -> None:
    """Three at once at a lone server of 1 s with a wait of 1.5 s: the third would wait for 2 s."""
    outcome = simulate_queues(np.array([0.0, 0.0, 0.0]), 1, Service((1.0,), 1, 1.5))
    assert outcome.seconds[:2].tolist() == [1, 2]
    assert math.isnan(outcome.seconds[2])


def test_an_idle_instance_takes_what_waits_as_one_batch() -> None:
    """The first alone, then two together in 3 s."""
    outcome = simulate_queues(np.array([0.0, 0.5, 1.0]), 1, Service((2.0, 3.0), 1))
    assert outcome.seconds.tolist() == [2, 4.5, 4]


def test_twice_the_capacity_has_half_refused() -> None:
    outcome = simulate_queues(poisson_arrivals(2 * 2 * LINEAR.rate, 40_000), 2, LINEAR)
    assert outcome.refused == pytest.approx(0.5, abs=0.05)


def test_each_pod_gets_the_same() -> None:
    """Two that arrive together go to two pods, and none waits."""
    assert simulate_queues(np.zeros(2), 2, Service((1.0,), 1)).seconds.tolist() == [1, 1]


# ---- hours


@pytest.fixture(scope="module")
def profile() -> queues.Profile:
    return queues.build_profile(LINEAR, requests=3000)


def spec(**behavior: int) -> dict[str, Any]:
    return autoscale.rendered_spec(3, {f"autoscaling.scaleUp.{name}": value for name, value in behavior.items()})


def test_hours_agree_with_requests_one_by_one(profile: queues.Profile) -> None:
    """Of pods that stay as many as they are, below capacity and above it."""
    fixed = {**spec(), "minReplicas": 3, "maxReplicas": 3}
    for share in (0.6, 1.3):
        hours = autoscale.simulate(profile, fixed, Scenario("constant", np.full(120, 3 * share)))
        one_by_one = simulate_queues(poisson_arrivals(3 * share * LINEAR.rate, 30_000), 3, LINEAR)
        assert hours.refused == pytest.approx(one_by_one.refused, abs=0.03)
        assert hours.p99_s == pytest.approx(one_by_one.quantile(0.99), rel=0.25)


def test_a_fleet_knows_when_a_pod_answers() -> None:
    fleet = Fleet(3, start_s=30)
    fleet.resize(0, 5)
    fleet.advance(47)
    assert (fleet.wanted, fleet.serving) == (5, 3)
    fleet.advance(48)
    assert fleet.serving == 5
    fleet.resize(50, 9)
    fleet.resize(51, 4)  # those that still start go first
    assert fleet.serving == 4
    fleet.lose(60, 1 / 2)
    assert (fleet.wanted, fleet.serving) == (4, 2)
    fleet.advance(60 + 40 + 300 + 30 + 18)
    assert fleet.serving == 4


def test_more_load_gets_more_pods_and_gives_them_back(profile: queues.Profile) -> None:
    load = np.concatenate([np.full(300, 2.0), np.full(900, 8.0), np.full(2400, 2.0)])
    course = autoscale.simulate(profile, spec(), Scenario("spike", load))
    assert course.pods[0] < 8 < course.pods[1100]
    assert course.pods[-1] < course.pods[1100]
    assert 0 < course.refused < 0.2
    assert course.pod_hours == pytest.approx(course.pods.sum() / 3600)


def test_the_autoscaler_is_the_charts() -> None:
    """Every alternative is rendered, and differs from the chart."""
    specs = {name: autoscale.rendered_spec(3, change(6)) for name, change in autoscale.ALTERNATIVES.items()}
    own = specs.pop("the chart")
    assert own["metrics"][0]["external"]["target"]["averageValue"] == "6"
    assert all(each != own for each in specs.values())


# ---- the command


def test_the_table_the_picture_and_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On the tests' network, and of the smallest size."""
    repository = build_repository(tmp_path / "model_repository")
    monkeypatch.setattr(autoscale, "SIZES", (3,))
    monkeypatch.setattr(autoscale, "day", lambda pods: np.full(960, pods / 2))
    monkeypatch.setattr(queues.build_profile, "__defaults__", (500, 3))
    words = ["--repository", repository, "--png", tmp_path / "a.png", "--json", tmp_path / "a.json"]
    assert autoscale.main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "a.json").read_text())
    assert len(figures["rows"]) == 4 * len(autoscale.ALTERNATIVES)
    assert all(row["values"] in printed and f"{row['pod_hours']:,.0f}" in printed for row in figures["rows"])
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert autoscale.main(["--repository", str(tmp_path)]) == 1


@pytest.mark.long
def test_real_pods_are_asked_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is enough here, and what it answers is not judged: other tests have the cores."""
    monkeypatch.setattr(real_queues, "PODS", 1)
    monkeypatch.setattr(real_queues, "LONE", 4)
    monkeypatch.setattr(real_queues, "WARM_UP_S", 1.0)
    monkeypatch.setattr(real_queues, "LOADS", {"below capacity": 0.4})
    (row,) = real_queues.validate(LINEAR, seconds=3)
    assert row["requests"] > 20
    assert min(row["p99_s"]) > real_queues.slow_service(LINEAR).batch_s[0]


@pytest.mark.parametrize(
    ("real", "simulated", "agree"), [(2, 2.29, True), (2, 2.31, False), (0, 0.009, True), (0, 0.02, False)]
)
def test_fifteen_percent(real: float, simulated: float, agree: bool) -> None:
    assert real_queues.close(real, simulated) == agree
