"""The server under MLCommons' LoadGen, which decides by itself when to send, and whether a run is valid.

https://github.com/mlcommons/inference/blob/master/loadgen/README.md, and for the scenarios and their metrics
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

import asyncio
import contextlib
import ctypes
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlperf_loadgen as lg

from alexnet_triton.client.images import payload
from alexnet_triton.loadtest.cases import Case, Target, input_tensor
from alexnet_triton.loadtest.engine import Sender, make_sender
from alexnet_triton.loadtest.workload import Answer, Request, RequestFault, RequestSampler, Workload

CONNECTIONS = 1024
TIMEOUT_S = 30.0
Answered = Callable[[Sequence[int], Answer], None]


class Sending:
    """Sends samples in requests of at most `batch` images, with at most `in_flight` requests at a time."""

    def __init__(self, target: Target, batch: int, in_flight: int | None, answered: Answered) -> None:
        self._target, self._batch, self._most, self._answered = target, batch, in_flight, answered
        self._waiting: deque[tuple[int, Case]] = deque()
        self._sent: dict[Request, list[int]] = {}
        self._sampler = RequestSampler(target, (), Workload())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sending", daemon=True)

    def start(self) -> None:
        """Connect.

        Raises:
            OSError and the like: what kept it from connecting.
        """
        self._thread.start()
        self._run(self._connect())

    def put(self, samples: list[tuple[int, Case]]) -> None:
        """Send samples, from any thread. LoadGen, which cannot be told to stop, goes on after `close`: to nobody."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._take, samples)

    def close(self) -> None:
        """Drop the connections."""
        self._run(self._sender.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self) -> None:
        self._sender: Sender = make_sender(self._target, CONNECTIONS, TIMEOUT_S, self._done)
        await self._sender.start()

    def _take(self, samples: list[tuple[int, Case]]) -> None:
        self._waiting.extend(samples)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and (self._most is None or len(self._sent) < self._most):
            part = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            request = self._sampler.encode([case for _, case in part])
            request.intended_s = request.sent_s = time.perf_counter()
            self._sent[request] = [number for number, _ in part]
            self._sender.send(request)

    def _done(self, request: Request, answer: Answer) -> None:
        self._answered(self._sent.pop(request), answer)
        self._fill()


Scenario = Literal["SingleStream", "Offline", "Server"]
NS = 1_000_000_000
ANY = frozenset[int]()  # performance is measured without looking at the answers, accuracy in a run of its own


@dataclass(frozen=True)
class Rules:
    """What LoadGen is told. The names are its own.

    Attributes:
        target_qps: of Server, the rate of its Poisson arrivals; of Offline, what sizes its one query.
        target_latency_s: of Server, for 99 % of the requests.
        performance_samples: images that are held in memory and drawn from.
    """

    scenario: Scenario
    accuracy: bool = False
    min_duration_s: float = 60.0
    target_qps: float = 100.0
    target_latency_s: float = 0.15
    performance_samples: int = 1024
    batch: int = 16
    concurrency: int = 6

    def settings(self) -> Any:
        """As LoadGen's TestSettings; seeds and whatever else keep LoadGen's defaults."""
        settings = lg.TestSettings()
        settings.scenario = getattr(lg.TestScenario, self.scenario)
        settings.mode = lg.TestMode.AccuracyOnly if self.accuracy else lg.TestMode.PerformanceOnly
        settings.min_duration_ms = round(self.min_duration_s * 1e3)
        settings.min_query_count = 1 if self.scenario == "Offline" else 100
        settings.offline_expected_qps = settings.server_target_qps = self.target_qps
        settings.server_target_latency_ns = round(self.target_latency_s * NS)
        settings.server_target_latency_percentile = 0.99
        settings.single_stream_target_latency_percentile = 0.9
        return settings


class Library:
    """LoadGen's query sample library: the images of a folder, loaded when LoadGen asks for them."""

    def __init__(self, target: Target, paths: Sequence[Path]) -> None:
        self._target, self.paths = target, paths
        self.cases: dict[int, Case] = {}

    def load(self, indices: Sequence[int]) -> None:
        """Into memory."""
        signature = self._target.signature
        for index in indices:
            tensor = input_tensor(payload(self.paths[index], signature), signature)
            self.cases[index] = Case(str(self.paths[index]), tensor, ANY)

    def unload(self, indices: Sequence[int]) -> None:
        """Out of memory."""
        for index in indices:
            self.cases.pop(index, None)


class SystemUnderTest(Sending):
    """Takes LoadGen's queries to the server, and the answers back; a response is the class, int32, or nothing."""

    def __init__(self, target: Target, library: Library, rules: Rules) -> None:
        batch, in_flight = (rules.batch, rules.concurrency) if rules.scenario == "Offline" else (1, None)
        super().__init__(target, batch, in_flight, self._complete)
        self._library = library
        self.labels: dict[int, str] = {}
        self.failures: Counter[str] = Counter()

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's callback for a query."""
        self.put([(sample.id, self._library.cases[sample.index]) for sample in samples])

    def _complete(self, ids: Sequence[int], answer: Answer) -> None:
        if isinstance(answer, RequestFault) or len(answer) != len(ids):
            self.failures[answer.name if isinstance(answer, RequestFault) else "unreadable answer"] += len(ids)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(each, 0, 0) for each in ids])
            return
        classes = (ctypes.c_int32 * len(ids))(*(self._class(text) for text in answer))
        start = ctypes.addressof(classes)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(each, start + 4 * i, 4) for i, each in enumerate(ids)])

    def _class(self, text: str) -> int:
        _, index, *label = text.split(":", 2)
        if label:
            self.labels[int(index)] = label[0]
        return int(index)


def run_loadgen(sut: SystemUnderTest, library: Library, rules: Rules, folder: Path) -> None:
    """One run, whose logs LoadGen writes into the folder. Ctrl-C is heard while it runs."""
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    log = lg.LogSettings()
    log.log_output, log.enable_trace = output, False
    system = lg.ConstructSUT(sut.issue, lambda: None)  # nothing is held back, so nothing is flushed
    samples = min(rules.performance_samples, len(library.paths))
    images = lg.ConstructQSL(len(library.paths), samples, library.load, library.unload)
    # A daemon: LoadGen cannot be told to stop, and must not keep an interrupted program alive.
    thread = threading.Thread(
        target=lg.StartTestWithLogSettings, args=(system, images, rules.settings(), log, ""), daemon=True
    )
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    lg.DestroyQSL(images)
    lg.DestroySUT(system)
