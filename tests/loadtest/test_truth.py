"""The figures against a server whose truth is known."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.loadtest.recorder import Times, new_histogram, record
from tests.loadtest.stubs import Done, loadtest, stub

SERVICE_S, STALL_S, RATE, DURATION_S = 0.005, 2.0, 200, 6


def true_latencies() -> np.ndarray:
    """Milliseconds of every request at constant arrivals: those within the stall wait for its end."""
    since_stall_s = np.arange(RATE * DURATION_S) / RATE
    return 1e3 * (np.maximum(0.0, STALL_S - since_stall_s) + SERVICE_S)


def _against_a_stall(pictures: Path, output: Path, *load: object) -> Done:
    with stub("--service-ms", 1e3 * SERVICE_S, "--stall-at", 400, "--stall-s", STALL_S) as server:
        times = ("--duration", f"{DURATION_S}s", "--warmup", "500ms", "--no-report")
        done = loadtest("run", "--url", server.url, "--images", pictures, *load, *times, output=output)
        return replace(done, late_ms=server.counts()["late_ms"])


def test_the_open_loop_sees_a_stall_and_the_closed_loop_hides_it(pictures: Path, tmp_path: Path) -> None:
    loads: Sequence[tuple[object, ...]] = (("--rate", RATE, "--arrivals", "constant"), ("--users", 2))
    with ThreadPoolExecutor(2) as pool:
        opened, closed = pool.map(
            lambda number: _against_a_stall(pictures, tmp_path / str(number), *loads[number]), range(2)
        )
    assert (opened.code, closed.code) == (0, 0), opened.err + closed.err
    # On a machine that is busy with something else, generator and stub are late by themselves, and say by how much.
    late_ms = opened.measured["generator"]["lag"]["max_ms"] + opened.late_ms
    truth = {name: np.percentile(true_latencies(), each) for name, each in (("p99_ms", 99), ("p999_ms", 99.9))}
    for name, value in truth.items():
        assert 0.95 * value < opened.measured["latency"][name] < 1.05 * value + late_ms
    # Two users wait through the stall: two requests of hundreds, where 400 should have been sent.
    assert closed.measured["latency"]["p99_ms"] < 0.5 * truth["p99_ms"]
    assert opened.measured["sent"] == pytest.approx(RATE * DURATION_S, abs=1)
    assert "closed loop, 2 users: a slow server slows the load, and hides it" in " ".join(closed.out.split())


def test_wrong_answers_are_found_named_and_counted(pictures: Path, tmp_path: Path) -> None:
    with stub("--wrong-every", 1000) as server:
        asked = server.counts()
        load = ("--rate", 1000, "--duration", "3s", "--warmup", "0s", "--slo", "errors=0.01%", "--no-report")
        done = loadtest("run", "--url", server.url, "--images", pictures, *load, output=tmp_path)
        given = server.counts()
    assert (asked["requests"], asked["wrong"]) == (0, 0)
    assert given["wrong"] >= 2
    (failure,) = done.measured["failures"]
    assert (failure["name"], failure["count"]) == ("wrong answer", given["wrong"])
    assert "is class" in failure["examples"][0]
    assert done.measured["right"] + failure["count"] == done.measured["sent"]
    assert f"{given['wrong']} x wrong answer" in done.out
    assert done.code == 1


def test_what_is_never_answered_is_a_timeout(pictures: Path, tmp_path: Path) -> None:
    with stub("--stall-at", 100, "--stall-s", 60) as server:
        load = ("--rate", 100, "--arrivals", "constant", "--duration", "2s", "--warmup", "0s", "--give-up", "1s")
        done = loadtest("run", "--url", server.url, "--images", pictures, *load, "--no-report", output=tmp_path)
    (failure,) = done.measured["failures"]
    assert failure["name"] == "timeout"
    assert done.measured["right"] + failure["count"] == done.measured["sent"]
    assert done.measured["latency"]["p99_ms"] >= 1000


def test_a_server_that_goes_away_is_named(pictures: Path, tmp_path: Path) -> None:
    with stub() as server, ThreadPoolExecutor(1) as pool:
        load = ("--rate", 200, "--duration", "3s", "--warmup", "0s", "--slo", "p99=1s,errors=1%", "--no-report")
        running = pool.submit(loadtest, "run", "--url", server.url, "--images", pictures, *load, output=tmp_path)
        while server.counts()["requests"] < 100:
            time.sleep(0.02)
        server.process.kill()
        done = running.result()
    failures = {each["name"]: each["count"] for each in done.measured["failures"]}
    assert failures["no connection"] > 0
    assert done.measured["right"] + sum(failures.values()) == done.measured["sent"]
    assert done.code == 1


def test_figures_are_those_of_the_histogram() -> None:
    histogram = new_histogram()
    for seconds in np.random.default_rng(0).exponential(0.05, 300):
        record(histogram, seconds)
    times = Times.of(histogram)
    assert times.mean_ms == pytest.approx(histogram.get_mean_value() / 1e3)
    quantiles = [histogram.get_value_at_percentile(each) / 1e3 for each in (50, 90, 99, 99.9)]
    assert [times.p50_ms, times.p90_ms, times.p99_ms, times.p999_ms] == quantiles
