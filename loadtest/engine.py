"""Sends a load, open or closed loop, and records what comes back, on one event loop."""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.recorder import Recorder
from alexnet_triton.loadtest.workload import (
    TIMEOUT,
    Answer,
    Done,
    Plan,
    Request,
    RequestFault,
    RequestSampler,
    find_fault,
    intended_times,
)

BURST = 64  # requests sent in a row before answers are looked at
SWEEP_S = 0.1
LEAD_S = 0.05  # between making ready and the first request
CLOCK_MONOTONIC = 1  # what time.perf_counter reads on Linux
TFD_TIMER_ABSTIME = 1
NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class PreciseTimer:
    """Calls `ring` in the running loop at each moment that is `set`, one at a time.

    asyncio's own timers are rounded up to whole milliseconds by epoll, which at 1,000 requests a second is the distance
    between two of them. A timerfd is exact (timerfd_create(2)).
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc, self._ring = ctypes.CDLL(None, use_errno=True), ring
        self._descriptor = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._expire)

    def set(self, moment_s: float) -> None:
        """Ring at a moment of `time.perf_counter`; at once when it is past."""
        at = _Itimerspec(value=_Timespec(*divmod(max(1, int(moment_s * NS)), NS)))
        self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, ctypes.byref(at), None)

    def close(self) -> None:
        """Never ring again."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _expire(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._ring()


@dataclass(frozen=True)
class Users:
    """The closed loop: each user sends, waits for the answer, thinks, and sends again."""

    count: int
    duration_s: float
    warmup_s: float = 0.0
    think_s: float = 0.0


class Sender(Protocol):
    """Carries requests to the server and hands each answer back, once."""

    delayed: int

    async def start(self) -> None:
        """Connect."""

    def send(self, request: Request) -> None:
        """Send, without waiting."""

    async def close(self) -> None:
        """Drop the connections."""


def make_sender(target: Target, connections: int, timeout_s: float, done: Done) -> Sender:
    """The sender for the target's protocol."""
    if target.address.is_grpc:
        from alexnet_triton.loadtest.grpc_sender import GrpcSender

        return GrpcSender(target, done, timeout_s)
    from alexnet_triton.loadtest.http_sender import HttpSender

    return HttpSender(target, connections, done)


class LoadEngine:
    """Sends what the sampler draws, gives up after `timeout_s`, and tells the recorder."""

    def __init__(
        self, sampler: RequestSampler, recorder: Recorder, timeout_s: float, connect: Callable[[Done], Sender]
    ) -> None:
        self.recorder = recorder
        self._sampler, self._timeout_s = sampler, timeout_s
        self.sender = connect(self._answered)
        self._in_flight: dict[Request, None] = {}
        self._over = asyncio.Event()
        self.after: Callable[[], None] = lambda: None  # called when a request is finished
        self.stopped = False

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._in_flight)

    def send(self, intended_s: float) -> None:
        """Draw and send the next request."""
        request = self._sampler.next()
        request.intended_s, request.sent_s = intended_s, time.perf_counter()
        self._in_flight[request] = None
        self.recorder.note_sent(request)
        self.sender.send(request)

    def stop(self) -> None:
        """Send no more; what is in flight is waited for."""
        self.stopped = True
        self._over.set()

    async def finish(self) -> None:
        """Wait until all is sent, then until all is answered or given up."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            await self._over.wait()
            self.stopped = True
            while self._in_flight:
                await asyncio.sleep(SWEEP_S / 10)
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping

    def _answered(self, request: Request, answer: Answer) -> None:
        if not request.finished:
            self._conclude(request, find_fault(request.cases, answer))

    def _conclude(self, request: Request, fault: RequestFault | None) -> None:
        request.finished = True
        del self._in_flight[request]
        self.recorder.note_done(request, fault, time.perf_counter())
        self.after()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            given_up_s = time.perf_counter() - self._timeout_s
            for request in [each for each in self._in_flight if each.intended_s < given_up_s]:
                self._conclude(request, RequestFault(TIMEOUT, f"no answer within {self._timeout_s:g} s"))


async def run_open(engine: LoadEngine, plan: Plan, seed: int, start_s: float) -> None:
    """Send at the plan's moments from `start_s` on, whatever the server does."""
    times = (intended_times(plan, seed) + start_s).tolist()
    left = iter(times)
    due = next(left, None)

    def ring() -> None:
        nonlocal due
        now_s = time.perf_counter()
        for _ in range(BURST):
            if due is None or engine.stopped:
                return engine.stop()
            if due > now_s:
                break
            engine.send(due)
            due = next(left, None)
        return timer.set(due if due is not None else now_s)

    timer = PreciseTimer(ring)
    try:
        timer.set(start_s)
        await engine.finish()
    finally:
        timer.close()


async def run_closed(engine: LoadEngine, users: Users, start_s: float) -> None:
    """Keep `users.count` requests in flight, less those whose user thinks."""
    loop, end_s = asyncio.get_running_loop(), start_s + users.warmup_s + users.duration_s

    def send() -> None:
        now_s = time.perf_counter()
        if now_s < end_s and not engine.stopped:
            engine.send(now_s)
        else:
            engine.stop()

    def after() -> None:
        loop.call_later(users.think_s, send) if users.think_s else loop.call_soon(send)

    engine.after = after
    await asyncio.sleep(max(0.0, start_s - time.perf_counter()))
    for _ in range(users.count):
        send()
    await engine.finish()
