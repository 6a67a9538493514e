"""locust -f loadtest/locustfile.py, as a person runs it."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from alexnet_triton.serving import Server
from alexnet_triton.serving.launch import free_port
from tests.loadtest.stubs import ROOT, Running, stub
from tests.waiting import wait_for


def _start(*options: object) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *map(str, options)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _run(*options: object) -> tuple[int, str]:
    with _start(*options) as running:
        out, _ = running.communicate(timeout=60)
    return running.returncode, out


def _total(out: str) -> int:
    """Requests of Locust's own table."""
    return int(re.findall(r"^ +Aggregated +(\d+)", out, re.MULTILINE)[0])


def test_every_user_on_a_real_server(tiny_server: Server, pictures: Path, tmp_path: Path) -> None:
    where = ("-H", f"http://{tiny_server.http_address}", "--grpc", tiny_server.grpc_address, "--images", pictures)
    how = ("--headless", "-u", 8, "-r", 8, "-t", "3s", "--only-summary", "--stop-timeout", 2)
    code, out = _run(*where, *how, "--hdr-json", tmp_path / "hdr.json")
    assert code == 0, out
    for protocol in ("POST", "gRPC"):
        for name in ("encoded single", r"pixels \w+"):
            assert re.search(rf"^{protocol} +{name} +[1-9]\d* +0\(0.00%\)", out, re.MULTILINE), out
    assert re.search(r"^\w+ +\w+ batched +[1-9]", out, re.MULTILINE), out
    assert json.loads((tmp_path / "hdr.json").read_text())["requests"] == _total(out)


def test_wrong_answers_are_failures_by_name(pictures: Path) -> None:
    with stub("--wrong-every", 50) as server:
        how = ("HttpFiles", "--headless", "-u", 2, "-r", 2, "-t", "2s", "--only-summary", "--stop-timeout", 2)
        code, out = _run("-H", server.url, "--images", pictures, *how)
        given = server.counts()["wrong"]
    assert code == 1
    found = re.findall(r"^(\d+) +POST encoded \w+: .*wrong answer: \d+.jpg is class", out, re.MULTILINE)
    assert given > 1
    assert given - 2 <= sum(map(int, found)) <= given  # each of two users may be stopped before its last answer


def test_a_lost_worker_is_reported_and_the_rest_is_kept(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "hdr.json"
    common = ("-H", quick_stub.url, "--images", pictures, "HttpFiles", "--headless", "--stop-timeout", 2)
    bind = ("--master", "--expect-workers", 2, "--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    load = ("-u", 4, "-r", 4, "--only-summary", "--hdr-json", file)
    master = _start(*common, *bind, *load)
    workers = [_start(*common, "--worker", "--master-port", port) for _ in range(2)]
    before = quick_stub.counts()["requests"]
    while quick_stub.counts()["requests"] < before + 500:
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    assert master.stdout
    seen = ""
    while "is lost" not in seen:
        seen = master.stdout.readline()
        assert seen, "the master ended by itself"
    master.send_signal(signal.SIGINT)
    out, _ = master.communicate(timeout=60)
    for worker in workers:
        worker.communicate(timeout=30)
    assert master.returncode == 4, out
    assert "what it did since its last report is not in the figures" in seen
    figures: dict[str, Any] = json.loads(file.read_text())
    (lost,) = figures["lost"]
    survivor = next(each for name, each in figures["workers"].items() if name != lost)
    assert survivor["requests"] > 0
    assert sum(each["requests"] for each in figures["workers"].values()) == figures["requests"] == _total(out)


def test_two_workers_add_up(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "hdr.json"
    before = quick_stub.counts()["requests"]
    common = ("-H", quick_stub.url, "--images", pictures, "--limit", 5, "HttpFiles", "--headless", "--stop-timeout", 2)
    port = free_port()
    bind = ("--processes", 2, "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    code, out = _run(*common, *bind, "-u", 4, "-r", 4, "-t", "2s", "--only-summary", "--hdr-json", file)
    figures = json.loads(file.read_text())
    assert code == 0, out
    assert len(figures["workers"]) == 2
    assert sum(each["requests"] for each in figures["workers"].values()) == figures["requests"] == _total(out)
    asked_for_answers = 2 * 5
    given = quick_stub.counts()["requests"] - before - asked_for_answers
    assert given - 4 <= figures["requests"] <= given  # each of four users may be stopped before its last answer


def test_the_web_page_starts_a_load(quick_stub: Running, pictures: Path) -> None:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    where = ("-H", quick_stub.url, "--images", pictures, "--web-host", "127.0.0.1", "--web-port", port)
    with _start(*where, "HttpFiles") as running:
        wait_for(lambda: b"Locust" in _get(page))
        with urllib.request.urlopen(
            f"{page}/swarm", urllib.parse.urlencode({"user_count": 2, "spawn_rate": 2}).encode()
        ):
            wait_for(lambda: json.loads(_get(f"{page}/stats/requests"))["total_rps"] > 0)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 0, out


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("-H", "http://127.0.0.1:9"), 3, "loadtest: 127.0.0.1:9: "),
        (("--images", "/nowhere"), 2, "loadtest: no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], code: int, message: str, pictures: Path) -> None:
    given = options if "--images" in options else (*options, "--images", pictures)
    done, out = _run("HttpFiles", "--headless", "-u", 1, "-t", "1s", *given)
    assert done == code
    assert message in out
    assert "Traceback" not in out
