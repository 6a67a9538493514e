"""Users for Locust: gRPC and HTTP, files and pixels, one image a request and several, with Triton's priorities.

    locust -f loadtest/locustfile.py      # and open its page; other ways are in the README

Each answer is checked. Users are a closed loop: figures to be quoted come from `alexnet-triton loadtest run --rate`.
"""

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import gevent
import grpc
import grpc.experimental.gevent as grpc_gevent
from gevent.event import Event
from gevent.util import wrap_errors
from hdrh.histogram import HdrHistogram
from locust import FastHttpUser, User, events, task
from locust.env import Environment
from locust.runners import MasterRunner
from tritonclient.grpc import service_pb2_grpc

from alexnet_triton.client.config import Config, InputFormat
from alexnet_triton.client.grpc_transport import CHANNEL_OPTIONS
from alexnet_triton.client.grpc_transport import build_request as build_message
from alexnet_triton.client.grpc_transport import read_reply as read_message
from alexnet_triton.client.http_transport import build_request
from alexnet_triton.client.protocol import InferRequest
from alexnet_triton.common.command import UserError, complain
from alexnet_triton.common.files import write_json
from alexnet_triton.common.infer_request import HEADER_LENGTH
from alexnet_triton.loadtest.arguments import parse_priorities
from alexnet_triton.loadtest.cases import Case, prepare
from alexnet_triton.loadtest.recorder import Times, new_histogram, record
from alexnet_triton.loadtest.senders import read_answer
from alexnet_triton.loadtest.workload import Answer, RequestFault, RequestSampler, Workload, find_fault, infer_request

Value = TypeVar("Value")


def run_in_thread(work: Coroutine[Any, Any, Value]) -> Value:
    """Run a coroutine to its end in a real thread, while gevent's greenlets go on in this one."""
    run: Any = wrap_errors(Exception, asyncio.run)  # gevent prints the traceback of an error that leaves its thread
    outcome = gevent.get_hub().threadpool.apply(run, (work,))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


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
            result = {"requests": times.count, "latency": vars(times), "workers": self._counts}
            write_json(self._file, {**result, "lost": sorted(self._lost)})


TIMEOUT_S = 10.0
SINGLE, BATCHED = "single", "batched"


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the users, which Locust also shows on its page."""
    group = parser.add_argument_group("alexnet-triton")
    group.add_argument("--grpc", default=f"127.0.0.1:{os.environ.get('GRPC_PORT', '8001')}", help="address for gRPC")
    group.add_argument("--images", default="artifacts/pictures", help="folder of images, held in memory")
    group.add_argument("--limit", type=int, default=200, help="of images")
    group.add_argument("--answers", default="", help="right answers, of alexnet-classify --format json (default: ask)")
    group.add_argument("--batch-size", type=int, default=8, help="images of a batched request")
    group.add_argument("--priorities", default="1:0.2,2:0.8", help="Triton's, with their weights")
    group.add_argument("--hdr-json", default="", help="file for the unrounded figures")


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    """Load images and answers in every process that has users, after --processes has forked."""
    grpc_gevent.init_gevent()  # before any channel, else the first call blocks every user
    options: Any = environment.parsed_options
    environment.host = environment.host or options.host or f"http://127.0.0.1:{os.environ.get('HTTP_PORT', '8000')}"
    Report(environment, Path(options.hdr_json) if options.hdr_json else None)
    if not isinstance(environment.runner, MasterRunner):
        try:
            _make_samplers(environment, options)
            READY.set()
        except UserError as error:
            complain("loadtest", error)
            sys.exit(error.exit_code)


def _make_samplers(environment: Environment, options: Any) -> None:
    """A sampler for each form that the users send, and each size of request."""
    answers = Path(options.answers) if options.answers else None
    priorities, seed = parse_priorities(options.priorities), os.getpid()
    chosen: set[InputFormat] = {each.send for each in environment.user_classes if issubclass(each, Checked)}
    for send in chosen:
        config = Config(urls=(str(environment.host),), send=send, retries=0)
        target, cases = run_in_thread(prepare(config, Path(options.images), options.limit, seed, answers))
        for size, batch in ((SINGLE, 1), (BATCHED, options.batch_size)):
            SAMPLERS[send, size] = RequestSampler(target, cases, Workload(batch, priorities, seed))


SAMPLERS: dict[tuple[InputFormat, str], RequestSampler] = {}
READY = Event()  # a worker is told to start its users while it still loads


class Checked(User):
    """Sends one image a request, or several, and looks at every answer."""

    abstract = True
    send: InputFormat = "encoded"

    def on_start(self) -> None:
        """Wait until the images are loaded."""
        READY.wait()

    @task(4)
    def single(self) -> None:
        """One image a request."""
        self.ask(SINGLE)

    @task(1)
    def batched(self) -> None:
        """Several images a request."""
        self.ask(BATCHED)

    def draw(self, size: str) -> tuple[list[Case], InferRequest]:
        """The images of the next request, and the request."""
        sampler = SAMPLERS[self.send, size]
        cases, priority = sampler.draw()
        return cases, infer_request(sampler.target, cases, priority)

    def ask(self, size: str) -> None:
        """Send one request, and tell Locust how it ended."""


class HttpUser(Checked, FastHttpUser):
    """Over HTTP, one connection a user."""

    abstract = True
    network_timeout = connection_timeout = TIMEOUT_S
    insecure = False

    def ask(self, size: str) -> None:
        """As `Checked.ask`."""
        cases, request = self.draw(size)
        header, data = build_request(request)
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        body: Any = header + data  # bytes, which Locust sends and does not mention
        path, name = f"/v2/models/{request.model}/infer", f"{self.send} {size}"
        with self.client.post(path, body, name=name, headers=headers, catch_response=True) as response:
            if response.status_code:
                answer = read_answer(response.status_code, response.content or b"", request.output)
            else:
                answer = RequestFault("no answer", str(response.error))
            fault = find_fault(cases, answer)
            if fault:
                response.failure(_words(fault))
            else:
                response.success()


class GrpcUser(Checked):
    """Over gRPC, one channel a user."""

    abstract = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options: Any = environment.parsed_options
        self._channel = grpc.insecure_channel(options.grpc, options=CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def on_stop(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def ask(self, size: str) -> None:
        """As `Checked.ask`."""
        cases, request = self.draw(size)
        message = build_message(request)
        start_s, start_time = time.perf_counter(), time.time()
        answer, length = self._call(message, request.output)
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        fault = find_fault(cases, answer)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"{self.send} {size}",
            response_time=elapsed_ms,
            response_length=length,
            exception=_FailedError(_words(fault)) if fault else None,
            context=self.context(),
            start_time=start_time,
            url=request.model,
        )

    def _call(self, message: Any, output: str) -> tuple[Answer, int]:
        try:
            reply = self._stub.ModelInfer(message, timeout=TIMEOUT_S)
            return read_message(reply, output).classes, reply.ByteSize()
        except grpc.RpcError as error:
            return RequestFault(f"gRPC {error.code().name}", error.details() or ""), 0
        except ValueError as error:
            return RequestFault("unreadable answer", str(error)), 0


class HttpFiles(HttpUser):
    """Sends files, which the server decodes."""

    weight = 4


class HttpPixels(HttpUser):
    """Sends pixels."""

    weight = 1
    send = "pixels"


class GrpcFiles(GrpcUser):
    """Sends files, which the server decodes."""

    weight = 4


class GrpcPixels(GrpcUser):
    """Sends pixels."""

    weight = 1
    send = "pixels"


class _FailedError(Exception):
    pass


def _words(fault: RequestFault) -> str:
    return f"{fault.name}: {fault.detail}" if fault.detail else fault.name
