"""`loadtest run --replay`: the moments of the gateway's log."""

import gzip
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_triton.client.config import Config
from alexnet_triton.client.protocol import Signature
from alexnet_triton.loadtest import main
from alexnet_triton.loadtest.cases import Case, Target
from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.loadtest.replay import INFER, plan_replay, read_log
from alexnet_triton.loadtest.workload import RequestSampler, Workload
from tests.loadtest.stubs import ROOT, Running, loadtest

START_S = 1_800_000_000
HTTP, GRPC = "/v2/models/classify/infer", "/inference.GRPCInferenceService/ModelInfer"


def line(ended_s: float, seconds: float = 0.0, **changed: object) -> str:
    """A line of the gateway's log, `ended_s` after the start of the recording."""
    moment_s = START_S + ended_s
    entry: dict[str, Any] = {
        "time": datetime.fromtimestamp(int(moment_s), timezone.utc).isoformat(),
        "unix_seconds": round(moment_s, 3),
        **{"id": "0", "caller": "me", "address": "127.0.0.1", "protocol": "HTTP/1.1", "method": "POST", "path": HTTP},
        **{"status": 200, "bytes_in": 1000, "bytes_out": 300, "seconds": seconds, "grpc_status": ""},
        **{"triton": "127.0.0.1:8000", "triton_status": "200", "triton_seconds": "0.004"},
        **changed,
    }
    return json.dumps({name: value for name, value in entry.items() if value is not None})


def write(file: Path, lines: Iterable[str]) -> Path:
    file.write_text("".join(f"{each}\n" for each in lines))
    return file


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Path]:
    return lambda *lines: write(tmp_path / "gateway.jsonl", lines)


def test_requests_arrived_when_they_began(log: Callable[..., Path]) -> None:
    """The lines are in the order of the ends."""
    file = log(line(1.0, 0.25), line(1.5, 0.1, bytes_in=2000), line(2.0, 1.75, path=GRPC, bytes_in=3000))
    recording = read_log(file)
    np.testing.assert_allclose(recording.arrivals_s, [0, 0.5, 1.15], atol=1e-6)
    assert recording.bytes_in.tolist() == [3000, 1000, 2000]


@pytest.mark.parametrize(("speed", "expected"), [(1.0, [0, 1, 2]), (2.0, [0, 0.5, 1]), (0.5, [0, 2, 4])])
def test_speed(speed: float, expected: list[float], log: Callable[..., Path]) -> None:
    file = log(line(0), line(1), line(2))
    load = plan_replay(read_log(file), file, speed, None, 0.0)
    np.testing.assert_allclose(load.times_s, expected, atol=1e-6)
    assert load.rate_per_s == pytest.approx(speed)


def test_duration_and_warmup_are_parts_of_the_recording(log: Callable[..., Path]) -> None:
    file = log(*(line(each) for each in range(20)))
    load = plan_replay(read_log(file), file, 2.0, 4.0, 1.0)
    assert (len(load.times_s), load.count, load.duration_s) == (10, 8, 4.0)
    longer = plan_replay(read_log(file), file, 2.0, 60.0, 0.0)
    assert longer.duration_s == pytest.approx(10)  # the recording's end


def test_logs_of_whole_seconds_are_spread_over_them(log: Callable[..., Path]) -> None:
    """Lines of two seconds, mixed as several of nginx's processes write them, and one with milliseconds."""
    ends = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    file = log(*(line(each, unix_seconds=None) for each in ends), line(5.0))
    arrivals_s = read_log(file).arrivals_s
    np.testing.assert_allclose(arrivals_s + 0.125, [0.125, 0.375, 0.625, 0.875, 1.25, 1.75, 5.0], atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({"path": "/v2/models/classify/versions/3/infer"}, True),
        ({"path": GRPC, "grpc_status": "0"}, True),
        ({"status": 400}, True),  # Triton was asked, and refused an image
        ({"status": 429, "triton": ""}, True),
        ({"path": GRPC, "status": 204, "grpc_status": "8", "triton": ""}, True),
        ({"status": 401, "triton": ""}, False),
        ({"path": GRPC, "status": 204, "grpc_status": "16", "triton": ""}, False),
        ({"method": "GET", "path": "/v2/models/classify/ready"}, False),
        ({"path": "/v2/models/classify/infer/more"}, False),
        ({"path": "/inference.GRPCInferenceService/ServerLive"}, False),
    ],
)
def test_what_counts_is_what_a_server_has_to_answer(
    changed: dict[str, object], counts: bool, log: Callable[..., Path]
) -> None:
    recording = read_log(log(line(0), line(1, **changed)))
    assert (len(recording.arrivals_s), recording.damaged) == (1 + counts, 0)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        line(1)[:-20],
        "7",
        "[" * 40_000,
        "x" * 200_000,
        line(1, seconds=-1),
        line(1, seconds="-"),
        line(1, unix_seconds=None, time="yesterday"),
        line(1, unix_seconds="nan"),
        line(1, path=None),
        line(1, bytes_in=10**30),
    ],
    ids=lambda text: text[:12],
)
def test_damaged_lines_are_counted(damage: str, log: Callable[..., Path]) -> None:
    recording = read_log(log(line(0), damage, line(2)))
    assert len(recording.arrivals_s) == 2
    assert (recording.damaged >= 1, recording.first_damaged) == (True, 2)


def test_compressed(tmp_path: Path) -> None:
    file = tmp_path / "gateway.jsonl.1.gz"
    file.write_bytes(gzip.compress(f"{line(0)}\n{line(3)}\n".encode()))
    assert read_log(file).arrivals_s.tolist() == [0, 3]
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(SettingError, match=r"\.gz: compressed file ended"):
        read_log(file)


def test_images_of_the_nearest_size_take_turns() -> None:
    sizes = {"a": 100, "b": 100, "c": 400, "d": 1000}
    cases = [Case(name, bytes(size), frozenset()) for name, size in sizes.items()]
    signature = Signature("encoded", "encoded", 0, "probabilities", 10, 4)
    sampler = RequestSampler(Target(Config(), signature, "classify", "1"), cases, Workload())

    def drawn(length: int) -> str:
        (case,) = sampler.next(length).cases
        return case.name

    assert [drawn(each) for each in (0, 5000, 249, 251, 699, 701)] == ["a", "d", "b", "c", "c", "d"]
    assert [drawn(120) for _ in range(4)] == ["a", "b", "a", "b"]


def test_replayed_at_twice_the_speed(
    quick_stub: Running, pictures: Path, log: Callable[..., Path], tmp_path: Path
) -> None:
    """Two bursts, two seconds apart in the log: one second here."""
    file = log(*(line(each / 100) for each in range(30)), "{}", *(line(2 + each / 100) for each in range(30)))
    words = ("--replay", file, "--speed", 2, "--slo", "errors=0%")
    before = quick_stub.counts()["requests"]
    done = loadtest("run", "--url", quick_stub.url, "--images", pictures, *words, output=tmp_path / "out")
    assert done.code == 0, done.err + done.out
    assert quick_stub.counts()["requests"] >= before + 60
    assert (done.measured["sent"], done.measured["right"], done.measured["failed"]) == (60, 60, 0)
    starts = {round(each["start_s"]): each["per_s"] for each in done.measured["windows"]}
    assert starts[0] == pytest.approx(30, abs=1)
    assert done.measured["seconds"] == pytest.approx(1.145 * 60 / 59, abs=0.01)
    assert (done.result["load"]["count"], done.result["load"]["damaged"]) == (60, 1)
    words_of_it = f"open loop, 60 requests at the moments of {file}, 2 times as fast"
    assert words_of_it in done.out
    assert words_of_it in (tmp_path / "out/report.html").read_text()
    assert f"{file}: 1 of 61 lines are not the gateway's and are left out, the first is line 31\n" in done.err


@pytest.mark.parametrize(
    ("words", "line_of_it"),
    [
        (("--replay", "{empty}"), "no inference request in its 0 lines; give the log"),
        (("--replay", "{other}"), "none of its 1 lines is an inference request, and 1 are not the gateway's"),
        (("--replay", "{none}"), "no such file or directory; give the log"),
        (("--replay", "{log}", "--speed", "0"), "--speed 0: give more than 0"),
        (("--replay", "{log}", "--speed", "nan"), "--speed nan: give more than 0"),
        (("--replay", "{log}", "--warmup", "1h"), "s are all in the warm-up; give a shorter --warmup"),
        (("--replay", "{log}", "--rate", "5"), "for the closed one, or --replay FILE"),
        (("--rate", "5", "--speed", "2"), "--speed 2 is of --replay FILE"),
    ],
)
def test_usage_is_one_line(
    words: tuple[str, ...], line_of_it: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / name for name in ("empty", "other", "none", "log")}
    files["empty"].touch()
    files["other"].write_text("127.0.0.1 - - GET /\n")
    write(files["log"], [line(0), line(1)])
    code = main(["run", *(each.format(**files) for each in words), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1), lines
    assert line_of_it in lines[0]


def test_the_lines_above_are_those_of_the_configuration() -> None:
    """tests/docker/test_gateway.py replays what a real nginx wrote."""
    text = (ROOT / "docker/gateway/nginx.conf.in").read_text()
    assert all(f'"{name}":' in text for name in json.loads(line(0)))
    assert INFER.fullmatch(HTTP)
    assert INFER.fullmatch(GRPC)
