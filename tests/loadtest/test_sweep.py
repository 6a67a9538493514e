"""The search for the knee, settings, and `alexnet-triton loadtest sweep`."""

import asyncio
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alexnet_triton.loadtest import main, sweep
from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.loadtest.measure import Generator, Measured, ServerView
from alexnet_triton.loadtest.recorder import Times
from alexnet_triton.loadtest.results import parse_objectives
from alexnet_triton.loadtest.sweep import Point, Range, find_knee
from alexnet_triton.loadtest.variants import parse_settings, variant_of
from alexnet_triton.serving.repository import Repository
from tests.loadtest.stubs import ROOT, Running, command, loadtest

NOTHING = Times(1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
FIGURES = Measured(
    1.0,
    1,
    1,
    0,
    1.0,
    1.0,
    NOTHING,
    NOTHING,
    NOTHING,
    {},
    [],
    [],
    Generator(0.0, 1.0, NOTHING, 0, []),
    ServerView([], [], 0.0, ""),
    False,
)


def _search(capacity: float, where: Range) -> tuple[list[Point], float | None]:
    """On a server that answers in 10 ms up to its capacity, and in 10 s above."""

    async def measure(load: float) -> Measured:
        return replace(FIGURES, latency=replace(NOTHING, p99_ms=10.0 if load <= capacity else 10_000.0))

    async def search() -> list[Point]:
        return [point async for point in find_knee(measure, parse_objectives("p99=100ms"), where)]

    points = asyncio.run(search())
    return points, max((point.load for point in points if point.met), default=None)


@pytest.mark.parametrize("capacity", [25.0, 30.0, 99.0, 317.0])
def test_the_knee_is_found_to_its_precision(capacity: float) -> None:
    points, knee = _search(capacity, Range(25, 1000, precision=0.05))
    assert knee is not None
    assert capacity / 1.05 <= knee <= capacity
    assert [point.met for point in points] == [point.load <= capacity for point in points]


def test_the_knee_in_users_is_exact() -> None:
    assert _search(13, Range(1, 256, whole=True))[1] == 13


def test_no_knee_below_and_none_above() -> None:
    assert _search(10, Range(25, 1000))[1] is None
    assert _search(5000, Range(25, 1000))[1] == 1000


@pytest.mark.parametrize(("slo", "met"), [("p99=100ms", None), ("p99=100ms,errors=0%", False)])
def test_a_load_that_the_generator_missed_is_not_decided(slo: str, met: bool | None) -> None:
    """Unless requests failed, which no generator makes them do."""
    late = replace(FIGURES, latency=replace(NOTHING, p99_ms=10_000.0), failed=1)
    late = replace(late, generator=replace(late.generator, limits=["it took 99% of a core"]))

    async def search() -> list[Point]:
        return [
            point
            async for point in find_knee(lambda load: asyncio.sleep(0, late), parse_objectives(slo), Range(25, 50))
        ]

    assert [point.met for point in asyncio.run(search())] == [met]


def test_a_search_that_the_generator_ended_exits_with_4(
    quick_stub: Running,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("alexnet_triton.loadtest.measure.BUSY", 0.0)
    load = ("--over", "users", "--from", "1", "--to", "1", "--slo", "p99=1us", "--duration", "300ms", "--warmup", "0s")
    assert main(["sweep", "--url", quick_stub.url, "--images", str(pictures), *load, "--output", str(tmp_path)]) == 4
    assert "not decided, because the generator was the bottleneck" in capsys.readouterr().out
    assert "not decided" in (tmp_path / "report.html").read_text()


def test_settings_are_combined() -> None:
    assert parse_settings([]) == [{}]
    assert len(parse_settings(["batching=off,on", "delay=0,500,1000"])) == 6
    with pytest.raises(SettingError, match="give NAME=VALUE"):
        parse_settings(["colour=red"])


def test_a_variant_leaves_the_original_alone(tiny_repository: Path) -> None:
    file = Repository.open(tiny_repository, "cpu").config_file("alexnet")
    before = file.read_bytes()
    setting = {"delay": "500", "instances": "3", "decoders": "1", "precision": "fp32", "threads": "2"}
    with variant_of(tiny_repository, setting) as copy:
        configs = Repository.open(copy, "cpu").configs
        assert (copy / "alexnet/1/model.onnx").samefile(tiny_repository / "alexnet/1/model.onnx")
    assert configs["alexnet"].dynamic_batching.max_queue_delay_microseconds == 500
    assert [configs[name].instance_group[0].count for name in ("alexnet", "preprocess")] == [3, 1]
    assert configs["alexnet"].parameters["precision"].string_value == "fp32"
    assert not copy.exists()
    assert file.read_bytes() == before


def test_batching_off_is_measured_on_a_server_of_its_own(tiny_repository: Path, pictures: Path, tmp_path: Path) -> None:
    how = ("--over", "users", "--from", 8, "--to", 8, "--slo", "errors=0%", "--limit", 3, "--no-report")
    times = ("--duration", "700ms", "--warmup", "0s", "--images", pictures)
    vary = ("--repository", tiny_repository, "--vary", "batching=off,on")
    done = loadtest("sweep", *vary, *how, *times, output=tmp_path)
    assert done.code == 0, done.err
    off, on = done.result["series"]
    assert (off["name"], on["name"]) == ("batching=off", "batching=on")
    assert (off["knee"], on["knee"]) == (8, 8)
    assert set(_batches(off)) == {"1"}
    assert set(_batches(on)) - {"1"}


def _batches(series: dict[str, Any]) -> dict[str, int]:
    models = series["points"][0]["measured"]["server"]["models"]
    return next(each["batches"] for each in models if each["name"] == "alexnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slo", ""), "--slo names an objective"),
        (("--vary", "batching=off"), "--vary wants the --repository"),
        (("--repository", "/nowhere", "--vary", "batching=maybe"), "no /nowhere"),
        (("--from", "100", "--to", "10"), "give two loads, the lower first"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], message: str, quick_stub: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--url", quick_stub.url, *options, "--output", str(tmp_path)]) in (2, 3)
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_ended_early_it_keeps_what_was_measured(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    times = ("--duration", "500ms", "--warmup", "0s", "--from", 20, "--to", 20_000, "--slo", "errors=0%", "--no-report")
    words = command("sweep", "--url", quick_stub.url, "--images", pictures, "--limit", 5, *times, output=tmp_path)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert "as published" in running.stdout.readline()
        assert "20  " in running.stdout.readline()
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130, errors
    (series,) = json.loads((tmp_path / "result.json").read_text())["series"]
    assert series["points"][0]["load"] == 20
    assert series["knee"] >= 20


def test_ended_between_two_loads_it_keeps_what_was_measured(
    quick_stub: Running, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_second_measurement(monkeypatch)
    times = ("--duration", "500ms", "--warmup", "0s", "--from", "20", "--slo", "errors=0%", "--no-report")
    words = ["sweep", "--url", quick_stub.url, "--images", str(pictures), "--limit", "5", *times]
    assert main([*words, "--output", str(tmp_path)]) == 130
    (series,) = json.loads((tmp_path / "result.json").read_text())["series"]
    assert [point["load"] for point in series["points"]] == [20]


def _interrupt_second_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the moment before the second measurement listens to it."""
    real, calls = sweep.measure, []

    async def measure(*arguments: Any) -> Measured:
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        return await real(*arguments)

    monkeypatch.setattr(sweep, "measure", measure)
