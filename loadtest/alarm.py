"""Waking an event loop at an exact moment. asyncio's own timers are rounded up to whole milliseconds by epoll,
which at 1,000 requests a second would be the distance between two of them; a timerfd is exact (timerfd_create(2))."""

import asyncio
import ctypes
import os
from collections.abc import Callable

CLOCK_MONOTONIC = 1  # what time.perf_counter reads on Linux
TFD_TIMER_ABSTIME = 1
NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls `ring` in the running loop at each moment that is `set`, one at a time."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc, self._ring = ctypes.CDLL(None, use_errno=True), ring
        self._descriptor = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._rung)

    def set(self, moment_s: float) -> None:
        """Ring at a moment of `time.perf_counter`; at once when it is past."""
        at = _Itimerspec(value=_Timespec(*divmod(max(1, int(moment_s * NS)), NS)))
        self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, ctypes.byref(at), None)

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _rung(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._ring()
