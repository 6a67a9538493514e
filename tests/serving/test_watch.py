"""Killed stubs and servers come back by themselves, on the same addresses, and answer rightly."""

import asyncio
import ctypes
import io
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
from PIL import Image

from alexnet_triton.common.infer_request import infer_path
from alexnet_triton.export.rollout import serve_version
from alexnet_triton.serving import Server
from alexnet_triton.serving.control import Control, ask_reference_image, check_health
from alexnet_triton.serving.errors import ControlError, StalledError, StartError
from alexnet_triton.serving.launch import PIDFD_GETFD
from alexnet_triton.serving.server import ignore_event
from alexnet_triton.serving.supervisor import SHARED_MEMORY
from alexnet_triton.serving.watch import MetricsServer, WatchConfig, Watcher, watcher_metrics
from tests.faults.wire import infer_request
from tests.serving.tiny import answer, jpeg, network, publication, publish, running_server, write_version
from tests.waiting import wait_for


@contextmanager
def _watched(
    repository: Path, config: WatchConfig | None = None, follow: Callable[[str], object] = lambda name: None
) -> Iterator[tuple[Watcher, list[tuple[str, dict[str, Any]]]]]:
    events: list[tuple[str, dict[str, Any]]] = []

    def note(name: str, **details: Any) -> None:
        events.append((name, details))
        follow(name)

    with running_server(repository, cores=2) as server:
        watcher = Watcher(server, note, config or WatchConfig(interval_s=0.2))
        thread = threading.Thread(target=watcher.run)
        thread.start()
        try:
            yield watcher, events
        finally:
            watcher.stopped = True
            thread.join()


@pytest.fixture(scope="module")
def watched(tiny_repository: Path) -> Iterator[tuple[Watcher, list[tuple[str, dict[str, Any]]]]]:
    with _watched(tiny_repository) as pair:
        yield pair


@pytest.mark.parametrize("model", ["preprocess", "alexnet"])
def test_a_killed_stub_is_healed(watched: tuple[Watcher, list], model: str) -> None:
    watcher, events = watched
    heals = watcher.counts["heals"]
    stub = next(pid for pid, name in _stubs(watcher.server).items() if name == model)
    os.kill(stub, signal.SIGKILL)
    wait_for(lambda: watcher.counts["heals"] > heals)
    assert events[-1][0] == "heal"
    assert events[-1][1]["models"] == [model]
    _answers_rightly(watcher.server)


def test_a_heal_that_meets_a_publication_is_tried_again(tiny_repository: Path, tmp_path: Path) -> None:
    """A publication moves the files of a version that the heal has begun to load."""
    built = shutil.copytree(tiny_repository, tmp_path / "built", symlinks=True)
    model, moved = built / "alexnet" / "1" / "model.onnx", tmp_path / "model.onnx"

    def bring_back(name: str) -> None:
        if name == "heal failed":
            moved.rename(model)

    with _watched(built, follow=bring_back) as (watcher, events):
        model.rename(moved)
        os.kill(next(pid for pid, name in _stubs(watcher.server).items() if name == "alexnet"), signal.SIGKILL)
        wait_for(lambda: watcher.counts["heals"] + watcher.counts["restarts"] == 1)
        assert [name for name, _ in events] == ["heal failed", "heal"]
        _answers_rightly(watcher.server)


def test_a_stub_of_another_model_that_dies_during_a_heal_is_healed_too(
    watched: tuple[Watcher, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, events = watched
    server, heal, counts = watcher.server, watcher.server.heal, watcher.counts.copy()

    def heal_while_the_decoders_die(model: str, timeout_s: float) -> None:
        heal(model, timeout_s)
        if model == "alexnet":
            for pid in [pid for pid, name in _stubs(server).items() if name == "preprocess"]:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(server, "heal", heal_while_the_decoders_die)
    os.kill(next(pid for pid, name in _stubs(server).items() if name == "alexnet"), signal.SIGKILL)
    wait_for(lambda: watcher.counts != counts)
    assert (events[-1][0], events[-1][1]["models"]) == ("heal", ["alexnet", "preprocess"])
    assert watcher.counts["restarts"] == counts["restarts"]
    _answers_rightly(server)


def test_the_reference_image_is_asked_again_where_the_version_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "built"
    publish(built, publication(tmp_path, 0))
    with running_server(built) as server:
        second = write_version(built, publication(tmp_path, 1))
        asked, versions = [], Control.versions

        def versions_before_a_publication(self: Control, model: str, timeout_s: float = 1.0) -> list[str]:
            found = versions(self, model, timeout_s)
            if model == "classify" and not asked:
                asked.append(found)
                serve_version(built, second, new=True)
            return found

        monkeypatch.setattr(Control, "versions", versions_before_a_publication)
        ask_reference_image(server.control, server.repository, every=True)
        assert (asked, server.control.versions("classify")) == ([["1"]], ["2"])


def test_callers_are_answered_while_a_model_is_healed(watched: tuple[Watcher, list]) -> None:
    """The stub that lives answers until the new ones do, and nothing of the old ones is left."""
    watcher, _ = watched
    server, heals, answers = watcher.server, watcher.counts["heals"], list[int]()
    wait_for(lambda: len(_stubs(server)) == 4)  # those that an earlier heal replaced are gone
    before = {pid for pid, name in _stubs(server).items() if name == "preprocess"}
    with _kept_busy(server.control):
        os.kill(min(before), signal.SIGSTOP)  # with a request in its hands
        time.sleep(0.5)
        os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while watcher.counts["heals"] == heals and time.monotonic() < deadline:
        try:
            server.control.classify(jpeg(1))
            answers.append(200)
        except ControlError as error:
            answers.append(error.status)
    assert watcher.counts["heals"] == heals + 1
    assert HTTPStatus.NOT_FOUND not in answers
    wait_for(lambda: len(psutil.Process(server.pid).children()) == 4)  # not even a zombie more
    wait_for(lambda: len(_shared_names(server)) == 4)
    assert not server.missing_stubs()
    _answers_rightly(server)


def test_nothing_is_left_of_a_server_that_was_healed(tiny_repository: Path) -> None:
    """Triton keeps a model whose stub died until it ends itself."""
    with running_server(tiny_repository) as server:
        prefix, stub = server._run and server._run.shm_prefix, server.stubs()[0]
        os.kill(stub, signal.SIGKILL)
        server.heal(server._stubs[stub].model, timeout_s=10.0)
        server.check()
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        assert list(SHARED_MEMORY.glob(f"{prefix}*"))
    assert not any(process.is_running() for process in processes)
    assert not list(SHARED_MEMORY.glob(f"{prefix}*"))


def test_a_killed_server_is_started_again_where_it_was(watched: tuple[Watcher, list]) -> None:
    watcher, _ = watched
    address, pid, restarts = watcher.server.http_address, watcher.server.pid, watcher.counts["restarts"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: watcher.counts["restarts"] > restarts)
    assert watcher.server.http_address == address
    assert watcher.server.pid != pid
    _answers_rightly(watcher.server)


def test_a_server_at_work_is_not_restarted_however_long_the_watcher_waits(tiny_repository: Path) -> None:
    """The watcher's own question is never answered in time here, as it waits for no answer: what others are answered
    keeps the server running.

    `status` asks by the same rule. A server that is silent and does nothing is restarted.
    """
    impatient = WatchConfig(interval_s=0.2, answer_timeout_s=0.0, failures=1)
    with _watched(tiny_repository, impatient) as (watcher, events):
        control, pid = watcher.server.control, watcher.server.pid
        with _kept_busy(control):
            assert not check_health(control, watcher.server.repository, timeout_s=0.0)
            time.sleep(2)
        assert (watcher.counts["restarts"], watcher.server.pid) == (0, pid)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: watcher.counts["restarts"] > 0)
    assert "no right answer" in {name for name, _ in events}


@pytest.mark.skipif(
    ctypes.CDLL(None).syscall(PIDFD_GETFD, os.pidfd_open(os.getpid()), 0, 0) < 0,
    reason="a container's rules forbid pidfd_getfd(2)",
)
def test_no_answer_is_lost_when_hundreds_are_ready_at_once(tiny_server: Server) -> None:
    """They time out in the queue together, behind large images; a pair of sockets has room for 277 by default."""
    large, small = infer_request([_png(6000, 4000)] * 2), infer_request([jpeg(1)], {"timeout": 1_000_000})
    url, outcomes = f"http://{tiny_server.http_address}{infer_path('classify')}", list[int]()

    async def ask(session: aiohttp.ClientSession, body: bytes, headers: dict[str, str]) -> None:
        async with session.post(url, data=body, headers=headers) as answer:
            outcomes.append(answer.status)

    async def ask_all() -> None:
        timeout, connector = aiohttp.ClientTimeout(60), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            first = [asyncio.create_task(ask(session, *large)) for _ in range(12)]
            await asyncio.sleep(0.3)
            await asyncio.gather(*first, *(ask(session, *small) for _ in range(450)))

    asyncio.run(ask_all())
    assert set(outcomes) == {200, 503}
    assert outcomes.count(503) > 300


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_stub_that_hangs_with_work_is_a_reason_to_restart(tiny_repository: Path) -> None:
    """Triton goes on answering for its statistics and its ready flag meanwhile, and may count an execution late."""
    config = WatchConfig(interval_s=0.2, answer_timeout_s=0.5, patience_s=4.0)
    with _watched(tiny_repository, config) as (watcher, events):
        pid = watcher.server.pid
        for stub, model in _stubs(watcher.server).items():
            if model == "alexnet":
                os.kill(stub, signal.SIGSTOP)
        with pytest.raises(StalledError, match=r"alexnet executed nothing for 0\.5 s of work"):
            _check_thrice(watcher.server)
        wait_for(lambda: watcher.counts["restarts"] > 0)
        assert watcher.server.pid != pid
        _answers_rightly(watcher.server)
    assert any("executed nothing" in details.get("reason", "") for _, details in events)


def _check_thrice(server: Server) -> None:
    for _ in range(3):
        check_health(server.control, server.repository, timeout_s=0.2, patience_s=0.5)


@contextmanager
def _kept_busy(control: Control) -> Iterator[None]:
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            with suppress(ControlError):  # of a stub that is killed
                control.classify(jpeg(1), timeout_s=30)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        over.set()
        caller.join()


def test_a_dead_server_is_not_asked_while_it_is_swept_up(watched: tuple[Watcher, list]) -> None:
    """At most one question may have been on its way."""
    watcher, events = watched
    pid, restarts, before = watcher.server.pid, watcher.counts["restarts"], len(events)
    supervisor = psutil.Process(pid).parent()
    assert supervisor
    supervisor.suspend()
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.5)
    supervisor.resume()
    wait_for(lambda: watcher.counts["restarts"] > restarts)
    assert [name for name, _ in events[before:]].count("no right answer") <= 1
    _answers_rightly(watcher.server)


def test_metrics_are_triton_s_and_the_watcher_s(watched: tuple[Watcher, list]) -> None:
    watcher, _ = watched
    metrics = MetricsServer("127.0.0.1", 0, watcher)
    try:
        with urllib.request.urlopen(f"http://{metrics.address}/metrics") as response:
            text = response.read().decode()
    finally:
        metrics.close()
    assert "nv_inference_request_success" in text
    assert "alexnet_healthy 1" in text
    assert f"alexnet_restarts_total {watcher.counts['restarts']}" in text


def test_a_restart_that_the_disk_refuses_is_tried_again(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = WatchConfig(interval_s=0.2, first_backoff_s=0.1)
    with _watched(tiny_repository, config) as (watcher, events):
        restart, problems = watcher.server.restart, [OSError(28, "No space left on device"), StartError("no")]

        def refuse_twice() -> None:
            if problems:
                raise problems.pop()
            restart()

        monkeypatch.setattr(watcher.server, "restart", refuse_twice)
        os.kill(watcher.server.pid, signal.SIGKILL)
        wait_for(lambda: watcher.counts["restarts"] == 1)
        _answers_rightly(watcher.server)
    assert [name for name, _ in events].count("start failed") == 2


def test_nothing_is_healthy_before_the_first_right_answer(tiny_repository: Path) -> None:
    watcher = Watcher(Server(tiny_repository), ignore_event)
    assert "\nalexnet_healthy 0\n" in watcher_metrics(watcher)


def _shared_names(server: Server) -> list[str]:
    assert server._run
    return [path.name for path in SHARED_MEMORY.glob(f"{server._run.shm_prefix}*")]


def _stubs(server: Server) -> dict[int, str]:
    assert server._process
    return {pid: stub.model for pid, stub in server._process.stubs().items()}


def _answers_rightly(server: Server) -> None:
    _, probabilities = server.control.classify(jpeg(seed=5))
    np.testing.assert_allclose(probabilities, answer(network(), jpeg(seed=5)), atol=1e-4)
    assert not server.missing_stubs()
