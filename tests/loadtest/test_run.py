"""`alexnet-triton loadtest run`, as a person runs it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from alexnet_triton.loadtest import main
from alexnet_triton.serving import Server
from tests.loadtest.stubs import ROOT, Running, command, loadtest, stub

SHORT = ("--duration", "1s", "--warmup", "200ms", "--no-report")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("sends", ["encoded", "pixels"])
def test_a_real_server(protocol: str, sends: str, tiny_server: Server, pictures: Path, tmp_path: Path) -> None:
    address = tiny_server.http_address if protocol == "http" else tiny_server.grpc_address
    how = ("--send", sends, "--batch", 3, "--priorities", "1:1,2:3", "--rate", 40, "--arrivals", "constant")
    done = loadtest("run", "--url", f"{protocol}://{address}", "--images", pictures, *how, *SHORT, output=tmp_path)
    assert done.code == 0, done.err
    measured = done.measured
    assert (measured["right"], measured["failures"]) == (pytest.approx(40, abs=1), [])
    assert set(measured["by_priority"]) == {"1", "2"}
    models = {each["name"]: each for each in measured["server"]["models"]}
    assert set(models) == ({"alexnet", "preprocess", "classify"} if sends == "encoded" else {"alexnet"})
    batches = sum(int(size) * n for size, n in models["alexnet"]["batches"].items())
    # Triton counts a batch before its inferences: a request of three may be between the two when it is asked.
    assert batches - models["alexnet"]["inferences"] in (-3, 0, 3)
    assert measured["server"]["note"] == ""


def test_memory_and_descriptors_are_tracked(tiny_server: Server, pictures: Path, tmp_path: Path) -> None:
    load = ("--users", 2, "--duration", "2500ms", "--warmup", "0s", "--no-report")
    done = loadtest("run", "--url", f"http://{tiny_server.http_address}", "--images", pictures, *load, output=tmp_path)
    samples = done.measured["server"]["samples"]
    assert samples
    for sample in samples:
        for side in ("server", "generator"):
            assert sample[side]["memory_mib"] > 10
            assert sample[side]["descriptors"] > 3


def test_the_result_says_how_to_make_it_again(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    secret = ("--header", "Authorization: Bearer secret")
    done = loadtest(
        "run", "--url", quick_stub.url, "--images", pictures, "--users", 1, *secret, *SHORT, output=tmp_path
    )
    assert done.code == 0, done.err
    result = done.result
    assert "--users 1" in result["command"]
    assert "secret" not in json.dumps(result)
    assert {"processor", "cores"} <= set(result["machine"])
    assert "python" in result["versions"]


def test_answers_from_a_file(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    """Wrong ones, so that it is seen that they are used."""
    lines = [
        {"path": str(path), "top": [{"label": "x", "index": 99, "probability": 1.0}]} for path in pictures.iterdir()
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, lines)))
    done = loadtest(
        "run",
        "--url",
        quick_stub.url,
        "--images",
        pictures,
        "--users",
        1,
        "--answers",
        answers,
        *SHORT,
        output=tmp_path,
    )
    assert done.measured["right"] == 0
    assert done.measured["failures"][0]["name"] == "wrong answer"


def test_interrupted_it_ends_with_what_was_measured(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    before = quick_stub.counts()["requests"]
    load = ("--rate", 200, "--duration", "60s", "--warmup", "0s", "--no-report")
    words = command("run", "--url", quick_stub.url, "--images", pictures, *load, output=tmp_path)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 30
        while quick_stub.counts()["requests"] < before + 150 and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130, errors
    measured = json.loads((tmp_path / "result.json").read_text())["measured"]
    assert measured["interrupted"]
    assert measured["right"] >= 50
    assert measured["failed"] == 0


@pytest.mark.parametrize(
    ("slo", "code"), [("p99=9s,errors=0%,rate=1", 0), ("p50=1us", 1), ("rate=1000000", 1), ("max=1us,rate=1", 1)]
)
def test_the_verdict_is_the_exit_code(slo: str, code: int, quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    words = (
        "--url",
        quick_stub.url,
        "--images",
        str(pictures),
        "--users",
        "1",
        "--slo",
        slo,
        "--output",
        str(tmp_path),
    )
    assert main(["run", *words, "--duration", "500ms", "--warmup", "0s", "--no-report"]) == code
    verdict = json.loads((tmp_path / "result.json").read_text())["verdict"]
    assert [each["met"] for each in verdict].count(False) == code


@pytest.mark.parametrize(
    ("load", "slo"),
    [(("--users", "1"), "errors=0%,growth=5%"), (("--rate", "0.01"), "errors=0.1%"), (("--rate", "0.01"), "p99=1s")],
    ids=["memory of a server that is not ours", "errors among no requests", "latency of no requests"],
)
def test_what_is_not_known_is_not_decided(
    load: tuple[str, str], slo: str, quick_stub: Running, pictures: Path, tmp_path: Path
) -> None:
    times = ("--duration", "500ms", "--warmup", "0s")
    done = loadtest("run", "--url", quick_stub.url, "--images", pictures, *load, *times, "--slo", slo, output=tmp_path)
    assert done.code == 4, done.out
    assert done.result["verdict"][-1]["met"] is None
    assert "not decided" in done.out
    assert "not known" in done.out
    assert "not decided" in (tmp_path / "report.html").read_text()


def test_a_generator_that_is_the_bottleneck_says_so(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    load = (
        "--rate",
        40_000,
        "--arrivals",
        "constant",
        "--duration",
        "400ms",
        "--warmup",
        "0s",
        "--no-report",
        "--give-up",
        "2s",
        "--slo",
        "p99=1us",
    )
    done = loadtest("run", "--url", quick_stub.url, "--images", pictures, *load, output=tmp_path)
    assert "the generator was the bottleneck: it sent" in done.out
    assert done.code == 4


def test_without_enough_connections_it_says_so(pictures: Path, tmp_path: Path) -> None:
    with stub("--service-ms", 20) as server:
        load = ("--rate", 100, "--duration", "500ms", "--warmup", "0s", "--no-report", "--connections", 1)
        done = loadtest("run", "--url", server.url, "--images", pictures, *load, output=tmp_path)
    assert "found all 1 connections taken: --connections" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--url", "http://127.0.0.1:9", "--rate", "5"), 3, "cannot connect"),
        (("--rate", "5", "--model", "nothing"), 3, "unknown model"),
        (("--rate", "0"), 2, "--rate 0: give more than 0"),
        (("--rate", "1e9"), 2, "--rate 1e+09: give more than 0 and at most"),
        (("--rate", "nan"), 2, "--rate nan"),
        (("--rate", "5", "--users", "5"), 2, "give --rate R for the open loop, or --users N"),
        ((), 2, "give --rate R for the open loop, or --users N"),
        (("--users", "0"), 2, "--users 0: give 1 to"),
        (("--rate", "5", "--batch", "99"), 2, "--batch 99: model 'classify' takes 1 to 16"),
        (("--rate", "5", "--slo", "p98=1ms"), 2, "--slo 'p98=1ms'"),
        (("--rate", "5", "--slo", "p99=fast"), 2, "--slo 'p99=fast'"),
        (("--rate", "5", "--priorities", "a"), 2, "--priorities 'a'"),
        (("--rate", "5", "--images", "EMPTY"), 2, "no image in"),
        (("--rate", "5", "--images", "/nowhere"), 2, "no folder /nowhere"),
        (("--rate", "5", "--answers", "/nowhere"), 2, "--answers /nowhere: no such file"),
        (("--rate", "5", "--output", "/proc/nowhere"), 2, "--output /proc/nowhere"),
        (("--url", "ftp://host", "--rate", "5"), 2, "is no address of a server"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...],
    code: int,
    message: str,
    quick_stub: Running,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if each == "EMPTY" else each for each in options]
    defaults = {"--url": quick_stub.url, "--images": str(pictures), "--output": str(tmp_path / "out")}
    given = [word for name, value in defaults.items() if name not in words for word in (name, value)]
    assert main(["run", *given, *words]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_time_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--rate", "5", "--duration", "soon"])
    assert ended.value.code == 2
    assert "'soon' is no time: give 250ms" in capsys.readouterr().err
