"""What Locust's users need beside Locust: images with their right answers, unrounded times, a report of each worker.

The right answers are learned over plain HTTP, because asyncio and gevent do not go together.

Locust rounds times to two digits before it computes percentiles. Each process records them in an HDR histogram beside
that, and workers send theirs with every report of Locust's own.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

import gevent
from hdrh.histogram import HdrHistogram
from locust.env import Environment
from locust.runners import MasterRunner

from alexnet_triton.client.config import Address, Config, InputFormat
from alexnet_triton.client.errors import ModelNotFound, Unreachable
from alexnet_triton.client.http_transport import HEADER_LENGTH, build_request, read_reply, refusal
from alexnet_triton.client.protocol import InferRequest, Signature, parse_label, read_signature
from alexnet_triton.common.infer_request import bytes_tensor
from alexnet_triton.loadtest.cases import Case, Target, find_images, load_images, read_answers, right_classes
from alexnet_triton.loadtest.recorder import Times, new_histogram, record


@dataclass(frozen=True)
class Settings:
    """The users' options."""

    address: Address
    images: Path
    limit: int
    answers: Path | None
    seed: int = 0


def load_cases(settings: Settings, send: InputFormat) -> tuple[Target, list[Case]]:
    """The target and the cases for `encoded` or `pixels`.

    Raises:
        SettingError: the images, or the file of answers.
        ServerError: the server cannot be asked, or the model is none for images.
    """
    config = Config(urls=(str(settings.address),), send=send)
    paths = find_images(settings.images, settings.limit, settings.seed)
    asking = _Asking(settings.address)
    described = asking.get(f"/v2/models/{config.model_name}/config", config.model_name)
    signature = read_signature(described, settings.address.authority)
    images = load_images(paths, signature)
    tensors = [bytes_tensor([image]) if signature.kind == "encoded" else image for image in images]
    if settings.answers:
        right = read_answers(settings.answers, paths)
    else:
        right = [asking.classify(config.model_name, signature, tensor) for tensor in tensors]
    names = [str(path.relative_to(settings.images)) for path in paths]
    return Target(config, signature, config.model_name, ""), list(map(Case, names, tensors, right))


class _Asking:
    def __init__(self, address: Address) -> None:
        self._address = address
        kind = HTTPSConnection if address.secure else HTTPConnection
        self._connection = kind(address.host, address.port, timeout=30)

    def get(self, path: str, model: str) -> Mapping[str, Any]:
        return self._ask("GET", path, b"", {}, model)

    def classify(self, model: str, signature: Signature, tensor: bytes) -> frozenset[int]:
        count = min(2, signature.classes)
        tensors = (signature.input, signature.datatype, signature.shape(1), tensor, signature.output)
        header, data = build_request(InferRequest(model, "", *tensors, class_count=count))
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        answer = self._ask("POST", f"/v2/models/{model}/infer", header + data, headers, model)
        return right_classes([parse_label(text) for text in read_reply(answer, signature.output).classes])

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str], model: str) -> Mapping[str, Any]:
        try:
            self._connection.request(method, self._address.prefix + path, body, dict(headers))
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            raise Unreachable(str(error).lower() or type(error).__name__, self._address.authority) from None
        if response.status == 400 and method == "GET":
            raise ModelNotFound(json.loads(content)["error"], self._address.authority, model)
        if response.status != 200:
            raise refusal(response.status, content, None, self._address.authority, model)
        return json.loads(content)


HISTOGRAM, COUNT, FAILED = "loadtest_histogram", "loadtest_requests", "loadtest_failed"
LOST = 4  # exit code: what a lost worker did since its last report is missing
LOOK_S = 0.5
log = logging.getLogger("loadtest")


class Report:
    """Listens to one Locust process. Makes a summary in a process that has one to make: alone, or the master."""

    def __init__(self, environment: Environment, file: Path | None) -> None:
        self._environment, self._file = environment, file
        self._all, self._since = new_histogram(), new_histogram()
        self._since_failed = 0
        self._counts: dict[str, dict[str, int]] = {}
        self._lost: set[str] = set()
        events = environment.events
        events.request.add_listener(self._on_request)
        events.report_to_master.add_listener(self._on_report_to_master)
        events.worker_report.add_listener(self._on_worker_report)
        if isinstance(environment.runner, MasterRunner):
            gevent.spawn(self._look_for_lost, environment.runner)
        events.quitting.add_listener(self._on_quitting)
        events.quit.add_listener(self._on_quit)

    def _on_request(self, response_time: float | None, exception: BaseException | None, **_: Any) -> None:
        self._since_failed += exception is not None
        for histogram in (self._all, self._since):
            record(histogram, (response_time or 0.0) / 1e3)

    def _on_report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        data[HISTOGRAM], data[COUNT] = self._since.encode().decode(), self._since.get_total_count()
        data[FAILED] = self._since_failed
        self._since.reset()
        self._since_failed = 0

    def _on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        counts = self._counts.setdefault(client_id, {"requests": 0, "failed": 0})
        counts["requests"] += data[COUNT]
        counts["failed"] += data[FAILED]
        if data[COUNT]:
            self._all.add(HdrHistogram.decode(data[HISTOGRAM]))

    def _look_for_lost(self, runner: MasterRunner) -> None:
        while True:
            gevent.sleep(LOOK_S)
            for worker in runner.clients.missing:
                if worker.id not in self._lost:
                    self._lost.add(worker.id)
                    log.warning("worker %s is lost: what it did since its last report is not in the figures", worker.id)

    def _on_quitting(self, environment: Environment, **_: Any) -> None:
        if self._lost and environment.process_exit_code is None:
            environment.process_exit_code = LOST

    def _on_quit(self, **_: Any) -> None:
        runner = self._environment.runner
        if runner is None or type(runner).__name__ == "WorkerRunner":
            return
        times = Times.of(self._all)
        print(
            f"loadtest: {times.count:,} requests, unrounded ms: p50 {times.p50_ms:.2f}, p90 {times.p90_ms:.2f}, "
            f"p99 {times.p99_ms:.2f}, p99.9 {times.p999_ms:.2f}, max {times.max_ms:.2f} (closed loop)"
        )
        for worker, counts in sorted(self._counts.items()):
            lost = ", lost" if worker in self._lost else ""
            print(f"loadtest: worker {worker}: {counts['requests']:,} requests, {counts['failed']:,} failed{lost}")
        if self._file:
            result = {
                "requests": times.count,
                "latency": vars(times),
                "workers": self._counts,
                "lost": sorted(self._lost),
            }
            self._file.write_text(json.dumps(result, indent=1) + "\n")
