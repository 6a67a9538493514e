"""What Locust's users need beside Locust: asyncio beside gevent, unrounded times, a report of each worker.

Locust rounds times to two digits before it computes percentiles. Each process records them in an HDR histogram beside
that, and workers send theirs with every report of Locust's own.
"""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent.util import wrap_errors
from hdrh.histogram import HdrHistogram
from locust.env import Environment
from locust.runners import MasterRunner

from alexnet_triton.common.files import write_json
from alexnet_triton.loadtest.recorder import Times, new_histogram, record

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
