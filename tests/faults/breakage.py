"""Classes 20 to 22, 25, 26 and 33: processes killed, closed interfaces tried, publications in the middle of it."""

import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tritonclient.grpc import service_pb2

from alexnet_triton.common.infer_request import bytes_tensor
from alexnet_triton.export.repository import versions
from alexnet_triton.serving.control import KEY_HEADER
from alexnet_triton.serving.repository import served_version
from tests.faults.callers import pour_both, twice_the_capacity
from tests.faults.checked_clients import CheckedClients
from tests.faults.malformed import Raw, header, send_all, together, with_header
from tests.faults.starts import one_line
from tests.faults.suite import GIVE_UP_S, Context, FaultClass, NotRunError, Seen
from tests.faults.wire import CUT, SILENT, Tally, ask, ask_grpc, background, grpc_request

IN_FLIGHT_S = 1.0  # requests sent so long before SIGTERM count as in flight
MODELS, TRITON = ("alexnet", "preprocess"), "tritonserver"


# ---- processes


def stubs_killed(context: Context) -> Seen:
    """A stub of each model, under load; the watcher loads its model again."""
    seen = together(*(_kill(context, model) for _ in range(context.scale.kills) for model in MODELS))
    if " cut" in seen.text:
        seen.problems.append("requests cut, not answered with an error")
    return seen


def server_killed(context: Context) -> Seen:
    """Tritonserver, under load; the watcher starts it again. Requests in flight see their connections break."""
    context.restarts_expected += context.scale.kills
    return together(*(_kill(context, TRITON) for _ in range(context.scale.kills)))


def _kill(context: Context, victim: str) -> Seen:
    """Kill tritonserver or a stub of a model, and wait until every caller has a right answer to a later request."""
    server, problems = context.server, list[str]()
    server.seconds_to_right_answer(GIVE_UP_S)  # the callers' first questions want their reference answers
    with CheckedClients(server.control, context.corpus.images) as clients:
        time.sleep(context.scale.seconds)
        _send_kill(context, victim)
        killed = time.perf_counter()
        while not clients.all_answered_since(killed) and time.perf_counter() - killed < GIVE_UP_S:
            time.sleep(0.01)
        seconds = time.perf_counter() - killed
        time.sleep(context.scale.seconds / 2)
    if clients.wrong:
        problems.append(f"{clients.wrong} wrong answers")
    if seconds > context.scale.healthy_s:
        problems.append(f"{victim}: all answered again after {seconds:.1f} s, not {context.scale.healthy_s:g}")
    failed = ", ".join(f"{count} {kind}" for kind, count in clients.problems().items()) or "none"
    text = f"{victim}: all answered again after {seconds:.1f} s; {clients.answered} right, failed: {failed}"
    return Seen(1, text, problems)


def _send_kill(context: Context, victim: str) -> None:
    """A stub that is found may have ended by itself, because its version has been replaced: then there are others."""
    killed, deadline = False, time.perf_counter() + GIVE_UP_S
    while not killed and time.perf_counter() < deadline:
        pids = [context.server.tritonserver] if victim == TRITON else context.server.stubs(victim)
        with suppress(ProcessLookupError):
            for pid in pids[:1]:
                os.kill(pid, signal.SIGKILL)
                killed = True


def terminated(context: Context) -> Seen:
    """SIGTERM under load: what is in flight is answered, nothing is left, and the next start answers."""
    with CheckedClients(context.server.control, context.corpus.images) as clients:
        time.sleep(max(context.scale.seconds, IN_FLIGHT_S))
        told = time.perf_counter()
        code = context.server.terminate()
        seconds = time.perf_counter() - told
    in_flight = clients.problems(since=told - IN_FLIGHT_S, until=told)
    left = context.server.footprint()
    problems = [f"{count} in flight: {kind}" for kind, count in in_flight.items() if not kind.startswith("refused")]
    if code:
        problems.append(f"exit code {code}")
    if left.processes or left.shared_names:
        problems.append(f"left: {left.processes} processes, {left.shared_names} names in /dev/shm")
    context.server.start()
    text = f"ended in {seconds:.1f} s with {code}; {clients.answered} answered, {clients.wrong} wrong; started again"
    return Seen(1, text, problems + ([f"{clients.wrong} wrong answers"] if clients.wrong else []))


# ---- closed doors


def closed_apis(context: Context) -> Seen:
    """Loading, shared memory, logging and traces, without a key and with a false one, over both protocols."""
    posts = [
        ("/v2/repository/index", {}),
        ("/v2/repository/models/classify/load", {}),
        ("/v2/repository/models/classify/unload", {}),
        ("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 8}),
        ("/v2/systemsharedmemory/unregister", {}),
        ("/v2/cudasharedmemory/region/x/register", {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 8}),
        ("/v2/logging", {"log_file": "/tmp/x"}),
        ("/v2/trace/setting", {"trace_file": "/tmp/x"}),
    ]
    keys: list[dict[str, str]] = [{}, {KEY_HEADER: "0" * 32}, {KEY_HEADER: ""}]
    requests = [Raw(json.dumps(body).encode(), key, path) for path, body in posts for key in keys]
    gets = ("/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting")
    requests += [Raw(b"", key, path, "GET") for path in gets for key in keys]
    tally, problems = Tally(), list[str]()
    for request in requests:
        for door in context.doors:
            outcome, _ = ask(door, request.body, request.headers, request.path, request.method)
            tally.add(f"{outcome} {door.name}")
            if outcome not in ("HTTP 400", "HTTP 403", "HTTP 404"):
                problems.append(f"{request.path}: {outcome} {door.name}")
    return together(Seen(tally.total, str(tally), problems), _closed_over_grpc(context))


def _closed_over_grpc(context: Context) -> Seen:
    calls: dict[str, Any] = {
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="classify"),
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="classify"),
        "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=8),
        "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
        "LogSettings": service_pb2.LogSettingsRequest(),
        "TraceSetting": service_pb2.TraceSettingRequest(),
    }
    tally, problems = Tally(), list[str]()
    for door in context.doors:
        channel = door.channel()
        for method, message in calls.items():
            path = f"/inference.GRPCInferenceService/{method}"
            outcome, _ = ask_grpc(channel, door, message.SerializeToString(), path)
            tally.add(f"{outcome} {door.name}")
            if outcome in ("gRPC OK", CUT, SILENT):
                problems.append(f"{method}: {outcome} {door.name}")
        channel.close()
    return Seen(tally.total, str(tally), problems)


def shared_memory(context: Context) -> Seen:
    """Inputs and outputs in shared memory that a caller names, that of the server's own stubs too."""
    data = bytes_tensor(context.corpus.images[:1])
    own = [path.name for path in context.server.shared_memory()][:3]
    regions: list[dict[str, Any]] = [
        {"shared_memory_region": name, "shared_memory_byte_size": size, "shared_memory_offset": offset}
        for name in ["x", "", "../x", *own, *(f"/{each}" for each in own)]
        for size, offset in ((8, 0), (2**63 - 1, 1), (1 << 20, 2**62), (-1, -1))
    ]
    base = header(len(data))
    inputs = [{"inputs": [{**base["inputs"][0], "parameters": region}]} for region in regions]
    outputs = [{"outputs": [{"name": "probabilities", "parameters": region}]} for region in regions]
    requests = [with_header({**base, **each}, b"") for each in inputs]
    requests += [with_header({**base, **each}, data) for each in outputs]
    seen = send_all(context, requests, context.doors)
    if "HTTP 200" in seen.text:
        seen.problems.append("a request in shared memory was answered")
    return together(seen, _shared_memory_over_grpc(context, ["x", *own]))


def _shared_memory_over_grpc(context: Context, names: Sequence[str]) -> Seen:
    tally, channel = Tally(), context.direct.channel()
    for name in names:
        message = grpc_request(context.corpus.images[:1])
        del message.raw_input_contents[:]
        message.inputs[0].parameters["shared_memory_region"].string_param = name
        message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 2**62
        tally.add(ask_grpc(channel, context.direct, message.SerializeToString())[0])
    channel.close()
    wrong = {"gRPC OK", CUT, SILENT} & set(tally.counts)
    return Seen(tally.total, str(tally), [f"shared memory over gRPC: {each}" for each in wrong])


# ---- a publication meanwhile


def publications(context: Context) -> Seen:
    """A version is published while callers send twice the capacity, while stubs and while the server are killed."""
    rate = twice_the_capacity(context)
    with (
        Publishing(context) as publication,
        background(lambda over, tally: pour_both(context, rate, over, tally)) as tally,
    ):
        publication.wait()
    text = f"at twice the capacity: {publication.check()}; {tally}"
    parts = [Seen(1, text, publication.problems + tally.problems())]
    context.recover(parts[0].problems)
    context.mark_baseline()
    for name, kill in (("stubs killed", stubs_killed), ("the server killed", server_killed)):
        with Publishing(context) as publication:
            publication.wait_for_files()
            seen = kill(context)
            publication.wait()
        context.recover(seen.problems)
        text = f"{name}: {publication.check()}; {seen.text}"
        parts.append(Seen(seen.times, text, seen.problems + publication.problems))
    return together(*parts)


class Publishing:
    """A publication by `alexnet-triton publish`, as a program of its own, during the block."""

    def __init__(self, context: Context) -> None:
        self.problems: list[str] = []
        self._context, self._repository = context, context.server.repository
        self._before = served_version(self._repository) or 0
        self._newest = max(versions(self._repository), default=0)  # above the served one after a rollback
        self._model = context.model or _own_model(self._repository, self._before)
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "Publishing":
        words: list[object] = ["publish", self._model, "--repository", self._repository]
        if self._context.pictures and self._context.pictures.is_dir():
            words += ["--images", self._context.pictures]
        self._future: Future[CompletedProcess[str]] = self._pool.submit(self._context.server.run_command, *words)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def wait(self) -> None:
        """Until it is over."""
        self._future.exception()

    def wait_for_files(self) -> None:
        """Until the new version's files are there, and it is about to be served."""
        while not self._future.done() and max(versions(self._repository), default=0) == self._newest:
            time.sleep(0.05)

    def check(self) -> str:
        """What came of it: a new version is served, or the one before still is, and nothing half written is left."""
        done = self._future.result()
        now, left = served_version(self._repository) or 0, versions(self._repository)
        if done.returncode:
            self.problems += one_line(done, "publish")
            if now != self._before or max(left) != self._newest:
                self.problems.append(f"publish failed, and left version {max(left)} with {now} served")
            return f"refused ({' '.join(done.stderr.split())[:160]})"
        if now != self._newest + 1:
            self.problems.append(f"published, and version {now} is served, not {self._newest + 1}")
        return f"version {now} published"


def _own_model(repository: Path, version: int) -> Path:
    """The served version's own network, where it is all of the publication.

    Raises:
        NotRunError: the version has other precisions too, which a publication of this file alone would leave out.
    """
    manifest = json.loads((repository / "classify" / str(version) / "manifest.json").read_text())
    if set(manifest.get("precisions", ())) - {"fp32"}:
        raise NotRunError("no artifacts/onnx/model.onnx to publish: run `make export`, or name one with --model")
    return repository / manifest["network"]["name"] / str(version) / "model.onnx"


CLASSES = [
    FaultClass(20, "a stub killed", "SIGKILL under load, a stub of each model in turn", stubs_killed),
    FaultClass(21, "the server killed", "SIGKILL of tritonserver under load", server_killed),
    FaultClass(22, "SIGTERM under load", "and started again", terminated, repeats=False),
    FaultClass(
        25, "closed APIs", "loading, shared memory, logs, traces, without a key and with a false one", closed_apis
    ),
    FaultClass(26, "shared memory", "inputs and outputs in regions that a caller names", shared_memory),
    FaultClass(33, "a publication meanwhile", "during 19, 20 and 21", publications, repeats=False),
]
