"""The real tritonserver on a tiny network: answers, batches, refuses, and goes without a trace."""

import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from alexnet_triton.serving import Server, server
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.errors import BackendAbortError, ControlError, PortTakenError, StartError
from alexnet_triton.serving.launch import FREE_PORTS, settle_ports
from alexnet_triton.serving.repository import Repository, instance_count
from alexnet_triton.serving.server import START_ATTEMPTS, ignore_event
from alexnet_triton.serving.supervisor import SHARED_MEMORY, SupervisedProcess
from alexnet_triton.serving.watch import Watcher, watcher_metrics
from tests.serving.tiny import answer, build_repository, jpeg, network, running_server
from tests.waiting import wait_for


def test_answers_as_onnxruntime_does(tiny_server: Server) -> None:
    version, probabilities = tiny_server.control.classify(jpeg(seed=1))
    assert version == "1"
    np.testing.assert_allclose(probabilities, answer(network(), jpeg(seed=1)), atol=1e-4)


def test_a_bad_image_is_the_callers_fault_and_no_one_elses(tiny_server: Server) -> None:
    files = [jpeg(seed=2), b"no image", b"", jpeg(seed=2)[:200]] * 8
    with ThreadPoolExecutor(len(files)) as pool:
        results = list(pool.map(lambda file: _status(tiny_server, file), files))
    assert results == [200, 400, 400, 400] * 8


def _status(server: Server, file: bytes) -> int:
    try:
        server.control.classify(file, timeout_s=30)
    except ControlError as error:
        return error.status
    return 200


def test_requests_are_batched(tiny_server: Server) -> None:
    """A few large photographs keep the decoders busy, while the others wait together."""
    images = [jpeg(seed, 4000, 3000) for seed in range(4)] + [jpeg(seed) for seed in range(28)]
    before = _settled_executions(tiny_server)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda image: tiny_server.control.classify(image, timeout_s=30), images))
    after = _settled_executions(tiny_server)
    for model in ("preprocess", "alexnet"):
        inferences, executions = (after[model][i] - before[model][i] for i in range(2))
        assert inferences == 32
        assert executions < inferences


def _settled_executions(server: Server) -> dict[str, tuple[int, int]]:
    """Triton counts a request after it has answered it: read until nothing is added any more."""
    readings = [_executions(server)]

    def unchanged() -> bool:
        time.sleep(0.1)
        readings.append(_executions(server))
        return readings[-1] == readings[-2]

    wait_for(unchanged)
    return readings[-1]


def _executions(server: Server) -> dict[str, tuple[int, int]]:
    with urllib.request.urlopen(f"http://{server.http_address}/v2/models/stats") as response:
        models = json.load(response)["model_stats"]
    return {model["name"]: (model["inference_count"], model["execution_count"]) for model in models}


def test_a_batch_of_one_request_keeps_its_order(tiny_server: Server) -> None:
    files = [jpeg(seed) for seed in range(5)]
    encoded = grpcclient.InferInput("encoded", [5, 1], "BYTES")
    encoded.set_data_from_numpy(np.array(files, dtype=object).reshape(5, 1))
    with grpcclient.InferenceServerClient(tiny_server.grpc_address) as client:
        result = client.infer("classify", [encoded]).as_numpy("probabilities")
    np.testing.assert_allclose(result, [answer(network(), file) for file in files], atol=1e-4)


def test_closed_apis_want_the_key(tiny_server: Server) -> None:
    stranger = Control(tiny_server.config.host, tiny_server.ports["http"])
    for path in (
        "/v2/systemsharedmemory/status",
        "/v2/repository/models/alexnet/unload",
        "/v2/repository/models/alexnet/load",
        "/v2/logging",
        "/v2/trace/setting",
    ):
        with pytest.raises(ControlError) as refusal:
            stranger._ask("POST" if "models" in path else "GET", path)
        assert refusal.value.status == 403
    tiny_server.control.load("alexnet")


def test_a_shell_s_limit_of_open_files_is_not_the_server_s(tmp_path: Path) -> None:
    """A connection takes one, and tritonserver stops to accept when it has none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with (tmp_path / "log").open("w+b") as log:
            process = SupervisedProcess(["sh", "-c", "ulimit -n >&2"], dict(os.environ), log, "none", log.fileno())
            assert process.ended(30)
            assert process.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert int((tmp_path / "log").read_text()) == min(hard, 65_536)


def test_no_process_shows_the_key(tiny_server: Server) -> None:
    assert tiny_server._process
    shown = {
        pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in (tiny_server.pid, tiny_server._process.supervisor_pid)
    }
    assert "alexnet-triton-key=***" in shown[tiny_server.pid]
    assert not any(tiny_server.key in arguments for arguments in shown.values())


def test_closed_apis_want_the_key_over_grpc(tiny_server: Server) -> None:
    with grpcclient.InferenceServerClient(tiny_server.grpc_address) as client:
        calls: list[Callable[[], object]] = [
            client.get_system_shared_memory_status,
            lambda: client.unload_model("alexnet"),
            lambda: client.update_log_settings({"log_file": "/tmp/any"}),
            client.get_trace_settings,
        ]
        for call in calls:
            with pytest.raises(InferenceServerException) as refusal:
                call()
            assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_stopped_under_load_it_answers_what_it_has_taken_and_leaves_nothing(tiny_repository: Path) -> None:
    with Server(tiny_repository, http_port=0, grpc_port=0, metrics_port=0) as server, ThreadPoolExecutor(8) as pool:
        pids, run = [server.pid, *server.stubs()], server.log_path.parent
        assert list(SHARED_MEMORY.glob(f"*{run.name}*"))
        first_answers = [threading.Event() for _ in range(8)]
        callers = [pool.submit(_ask_until_refused, server.http_address, first) for first in first_answers]
        assert all(first.wait(30) for first in first_answers)
        server.stop()
        ends = [caller.result() for caller in callers]
    assert {status for _, status in ends} == {404}  # a refusal, and never a cut connection
    assert all(answered > 0 for answered, _ in ends)
    assert len(pids) == 5
    assert not any(_alive(pid) for pid in pids)
    assert not list(SHARED_MEMORY.glob(f"*{run.name}*"))
    assert not run.exists()


def _ask_until_refused(address: str, first: threading.Event) -> tuple[int, int]:
    """Requests one after another on one connection: how many were answered, and the status that ended it."""
    body, answered = jpeg(seed=4), 0
    connection = http.client.HTTPConnection(address, timeout=20)
    while True:
        connection.request("POST", "/v2/models/classify/infer", body, {"Inference-Header-Content-Length": "0"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            connection.close()
            return answered, response.status
        answered += 1
        first.set()


def test_goes_when_its_program_is_killed(tiny_repository: Path) -> None:
    program = (
        "import sys, time; from alexnet_triton.serving import Server\n"
        f"server = Server({str(tiny_repository)!r}, http_port=0, grpc_port=0, metrics_port=0); server.start()\n"
        "print(server.pid, *server.stubs(), server.log_path.parent.name, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert child.stdout
    with child.stdout:
        *pids, run = child.stdout.readline().split()
    child.kill()
    child.wait()
    wait_for(lambda: not any(_alive(int(pid)) for pid in pids))
    wait_for(lambda: not list(SHARED_MEMORY.glob(f"*{run}*")))


def test_a_taken_port_is_named(tiny_server: Server, tiny_repository: Path) -> None:
    port = tiny_server.ports["grpc"]
    with pytest.raises(PortTakenError, match=f"port {port} on 127.0.0.1 is taken.*GRPC_PORT"):
        Server(tiny_repository, http_port=0, grpc_port=port, metrics_port=0).start()


def test_a_free_port_that_is_taken_meanwhile_is_left_for_another(
    tiny_server: Server, tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of this machine, or another server, has it by the time that tritonserver binds it."""
    settled = [{**settle_ports("127.0.0.1", dict.fromkeys(tiny_server.ports, 0)), "grpc": tiny_server.ports["grpc"]}]
    monkeypatch.setattr(server, "settle_ports", lambda *asked: settled.pop() if settled else settle_ports(*asked))
    with running_server(tiny_repository) as running:
        assert settled == []
        assert running.ports["grpc"] != tiny_server.ports["grpc"]
        assert set(running.ports.values()) <= set(FREE_PORTS)


def test_a_network_that_does_not_load_is_explained(tiny_repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_repository, broken)
    (broken / "alexnet" / "1" / "model.onnx").write_bytes(b"not a network")
    with pytest.raises(StartError, match=r"alexnet.*model\.onnx"):
        Server(broken, http_port=0, grpc_port=0, metrics_port=0).start()


def test_a_wrong_answer_is_no_start(tiny_repository: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_repository, wrong)
    reference = wrong / "classify" / "1" / "reference.json"
    given = json.loads(reference.read_text())
    given["images"][-1]["probabilities"]["1"] = 0.01
    reference.write_text(json.dumps(given))
    with pytest.raises(StartError, match=r"says class 1 with .* for its reference image"):
        Server(wrong, http_port=0, grpc_port=0, metrics_port=0).start()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_start_that_the_backend_aborted_is_tried_again(tiny_repository: Path, tmp_path: Path) -> None:
    """The real one aborts only now and then, on a busy machine: a program that always does stands in for it."""
    program, starts = tmp_path / "tritonserver", tmp_path / "starts"
    program.write_text(f"#!/bin/sh\necho >> {starts}\necho 'boost::interprocess::lock_exception' >&2\nexit 134\n")
    program.chmod(0o755)
    events: list[str] = []
    settings = {"log": tmp_path / "triton.log", "tritonserver": program, "event": lambda name, **_: events.append(name)}
    server = Server(tiny_repository, http_port=0, grpc_port=0, metrics_port=0, **settings)
    with pytest.raises(BackendAbortError, match=r"aborted at the start: see .*triton.log"):
        server.start()
    assert starts.read_text().count("\n") == START_ATTEMPTS
    assert events == ["start aborted"] * (START_ATTEMPTS - 1)
    assert f"alexnet_aborted_starts_total {START_ATTEMPTS - 1}\n" in watcher_metrics(Watcher(server, ignore_event))


def test_what_waits_too_long_is_refused(tmp_path: Path) -> None:
    """Whatever the machine answers in that time: here the stubs stand still with a request each, and the rest waits.

    After a second Triton calls a stub that stands still unhealthy, and looks at what waits; what came late, when a
    busy machine was slow to send it, has not waited long enough by then: the question is put up to three times.
    """
    repository = build_repository(tmp_path / "repository", max_wait_s=0.2)
    decoders = instance_count(Repository.open(repository, "cpu").configs["preprocess"])
    images = [jpeg(seed) for seed in range(decoders + 6)]
    refused: list[ControlError] = []
    for _ in range(3):
        errors = ask_stubs_that_stand_still(repository, images)
        assert all(isinstance(error, ControlError) for error in errors), errors
        refused = [error for error in errors if isinstance(error, ControlError) and error.status == 503]
        assert all("Request timeout expired" in str(error) for error in refused)
        if len(refused) >= len(images) - decoders:
            return
    pytest.fail(f"{len(refused)} of {len(images)} were refused")


def ask_stubs_that_stand_still(repository: Path, images: list[bytes]) -> list[BaseException | None]:
    """What becomes of requests that are sent at once to a server whose models do nothing."""
    with running_server(repository) as server, ThreadPoolExecutor(len(images)) as pool:
        list(pool.map(time.sleep, [0.01] * len(images)))  # all threads run
        for stub in server.stubs():
            os.kill(stub, signal.SIGSTOP)
        asked = [pool.submit(server.control.classify, image, timeout_s=10) for image in images]
        return [each.exception() for each in asked]


def test_a_stop_that_cuts_requests_is_told(tiny_repository: Path) -> None:
    """A stub that hangs keeps its request for ever."""
    events: list[str] = []
    server = Server(
        tiny_repository, http_port=0, grpc_port=0, metrics_port=0, event=lambda name, **_: events.append(name)
    )
    server.start()
    for stub in server.stubs():
        os.kill(stub, signal.SIGSTOP)
    with pytest.raises(ControlError):
        server.control.classify(jpeg(1), timeout_s=0.2)
    server.stop()
    assert (events, server.cut_drains) == (["requests cut"], 1)
