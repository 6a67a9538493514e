"""MLCommons' LoadGen against a real server and the stub."""

import asyncio
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.client.config import Config
from alexnet_triton.loadtest import main
from alexnet_triton.loadtest.cases import prepare
from alexnet_triton.loadtest.loadgen import Sending
from alexnet_triton.serving import Server
from tests.loadtest.stubs import ROOT, Running, command, loadtest, stub
from tests.serving.tiny import LABELS, answer, network


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("SingleStream", ()),
        ("Server", ("--target-qps", 900, "--target-latency", "5s")),
        ("Offline", ("--target-qps", 300)),
    ],
)
def test_loadgen_calls_a_run_valid(scenario: str, options: tuple[object, ...], pictures: Path, tmp_path: Path) -> None:
    """Offline's one query has to last for the shortest duration, so that the stub must not be quicker than expected."""
    with stub("--service-ms", 100 if scenario == "Offline" else 1) as server:
        how = ("--scenario", scenario, *options, "--min-duration", "1s", "--offline-requests", 1)
        done = loadtest("mlperf", "--url", server.url, "--images", pictures, *how, output=tmp_path)
    assert done.code == 0, done.out + done.err
    assert done.result["summary"]["valid"]
    assert "VALID" in done.out
    assert "Result is : VALID" in (tmp_path / "mlperf_log_summary.txt").read_text()


def test_a_target_that_is_missed_is_not_valid(pictures: Path, tmp_path: Path) -> None:
    with stub("--service-ms", 60) as server:
        how = ("--scenario", "Server", "--target-qps", 200, "--target-latency", "20ms", "--min-duration", "1s")
        done = loadtest("mlperf", "--url", server.url, "--images", pictures, *how, output=tmp_path)
    assert done.code == 1
    assert "INVALID" in done.out


def test_accuracy_is_that_of_the_network(tiny_server: Server, pictures: Path, tmp_path: Path) -> None:
    """Pictures in folders of their class, every fifth in another one's."""
    right = 0
    for number, path in enumerate(sorted(pictures.iterdir())):
        index = int(np.argmax(answer(network(), path.read_bytes())))
        wrong = number % 5 == 0
        folder = tmp_path / "labelled" / LABELS[(index + wrong) % 10].replace("/", "|")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        right += not wrong and "/" not in LABELS[index]
    how = ("--scenario", "Offline", "--accuracy", "--images", tmp_path / "labelled")
    for target, code in ((("--target-accuracy", right / 20), 0), (("--target-accuracy", "100%"), 1), ((), 4)):
        url = f"http://{tiny_server.http_address}"
        done = loadtest("mlperf", "--url", url, *how, *target, output=tmp_path / "out")
        assert done.code == code, done.out + done.err
        assert done.result["top1"] == pytest.approx(right / 20)
    assert "not decided: no --target-accuracy" in done.out


def test_requests_that_fail_are_counted_and_loadgen_is_not_left_waiting(pictures: Path, tmp_path: Path) -> None:
    with stub("--refuse-after", 50) as server:
        how = ("--scenario", "SingleStream", "--min-duration", "1s")
        done = loadtest("mlperf", "--url", server.url, "--images", pictures, *how, output=tmp_path)
    assert done.code == 1
    assert done.result["failures"]["HTTP 503"] > 0
    assert "x HTTP 503" in done.out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--scenario", "Server"), 2, "--scenario Server wants --target-qps"),
        (("--scenario", "SingleStream", "--images", "/nowhere"), 2, "no folder /nowhere"),
        (("--scenario", "SingleStream", "--url", "http://127.0.0.1:9"), 3, "cannot connect"),
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
    defaults = {"--url": quick_stub.url, "--images": str(pictures)}
    given = [word for name, value in defaults.items() if name not in options for word in (name, value)]
    assert main(["mlperf", *given, *options, "--output", str(tmp_path)]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_interrupted_it_ends_in_one_line(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    before = quick_stub.counts()["requests"]
    how = ("--scenario", "Server", "--target-qps", 200, "--min-duration", "60s")
    words = command("mlperf", "--url", quick_stub.url, "--images", pictures, *how, output=tmp_path)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 30
        while quick_stub.counts()["requests"] < before + 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == "loadtest: interrupted, without LoadGen's judgement\n"


def test_samples_after_the_end_go_nowhere(quick_stub: Running, pictures: Path) -> None:
    """LoadGen's thread outlives an interrupted run, and must not end in a traceback."""
    config = Config(urls=(quick_stub.url,))
    target, (case,) = asyncio.run(prepare(config, pictures, 1, seed=0))
    sending = Sending(target, 1, None, lambda ids, answer: None)
    sending.start()
    sending.close()
    sending.put([(1, case)])
