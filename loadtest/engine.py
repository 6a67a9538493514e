"""Sends a load, open or closed loop, and records what comes back, on one event loop."""

import asyncio
import ctypes
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator

from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.recorder import Recorder
from alexnet_triton.loadtest.replay import Replay
from alexnet_triton.loadtest.senders import GrpcSender, HttpSender
from alexnet_triton.loadtest.workload import (
    Answer,
    Done,
    Plan,
    Request,
    RequestSampler,
    Users,
    find_fault,
    intended_times,
)

BURST = 64  # requests sent in a row before answers are looked at
LOOK_S = 0.01
LEAD_S = 0.05  # between making ready and the first request
TFD_TIMER_ABSTIME = 1
NS = 1_000_000_000
# Carries requests to the server and hands each answer back once, a time-out in place of a late one.
Sender = HttpSender | GrpcSender


class PreciseTimer:
    """Calls `ring` in the running loop at each moment that is `set`, one at a time.

    asyncio's own timers are rounded up to whole milliseconds by epoll, which at 1,000 requests a second is the distance
    between two of them. A timerfd is exact (timerfd_create(2)); `perf_counter` reads the same clock.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc, self._ring = ctypes.CDLL(None, use_errno=True), ring
        self._descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._expire)

    def set(self, moment_s: float) -> None:
        """Ring at a moment of `time.perf_counter`; at once when it is past."""
        at = struct.pack("4l", 0, 0, *divmod(max(1, int(moment_s * NS)), NS))  # itimerspec: no interval, the moment
        self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, at, None)

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


def make_sender(target: Target, connections: int, timeout_s: float, done: Done) -> Sender:
    """The sender for the target's protocol. A request is given up `timeout_s` after its intended moment."""
    if target.address.is_grpc:
        return GrpcSender(target, timeout_s, done)
    return HttpSender(target, connections, timeout_s, done)


class LoadEngine:
    """Sends what the sampler draws, until it is `over`, and tells the recorder."""

    def __init__(self, sampler: RequestSampler, recorder: Recorder, connections: int, timeout_s: float) -> None:
        self.recorder = recorder
        self.sender = make_sender(sampler.target, connections, timeout_s, self._answered)
        self.over = asyncio.Event()
        self.after: Callable[[], None] = lambda: None  # called when a request is finished
        self._sampler, self._in_flight = sampler, 0

    def send(self, intended_s: float, length: int | None = None) -> None:
        """Draw and send the next request; `length` is a recorded one's, in bytes."""
        request = self._sampler.next(length)
        request.intended_s, request.sent_s = intended_s, time.perf_counter()
        self._in_flight += 1
        self.recorder.note_sent(request)
        self.sender.send(request)

    async def finish(self) -> None:
        """Wait until it is over, then until all is answered or given up."""
        await self.over.wait()
        while self._in_flight:
            await asyncio.sleep(LOOK_S)

    def _answered(self, request: Request, answer: Answer) -> None:
        self._in_flight -= 1
        self.recorder.note_done(request, find_fault(request.cases, answer), time.perf_counter())
        self.after()


def schedule(load: Plan | Replay, seed: int, start_s: float) -> Iterator[tuple[float, int | None]]:
    """The intended moments, ascending, and of a recording the lengths of its requests."""
    if isinstance(load, Replay):
        return zip((load.times_s + start_s).tolist(), load.bytes_in.tolist(), strict=True)
    return zip((intended_times(load, seed) + start_s).tolist(), itertools.repeat(None))


async def run_open(engine: LoadEngine, load: Plan | Replay, seed: int, start_s: float) -> None:
    """Send at the load's moments from `start_s` on, whatever the server does."""
    left = schedule(load, seed, start_s)
    due = next(left, None)

    def ring() -> None:
        nonlocal due
        now_s = time.perf_counter()
        for _ in range(BURST):
            if due is None or engine.over.is_set():
                return engine.over.set()
            if due[0] > now_s:
                break
            engine.send(*due)
            due = next(left, None)
        return timer.set(due[0] if due is not None else now_s)

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
        if now_s < end_s and not engine.over.is_set():
            engine.send(now_s)
        else:
            engine.over.set()

    def after() -> None:
        loop.call_later(users.think_s, send) if users.think_s else loop.call_soon(send)

    engine.after = after
    await asyncio.sleep(max(0.0, start_s - time.perf_counter()))
    for _ in range(users.count):
        send()
    await engine.finish()
