"""The time that a run has used."""

import signal
import threading
import time
from types import FrameType


class Clock:
    """Seconds of running between `start` and `pause`; those that the process was stopped for (SIGSTOP) don't count.

    A process that is continued hears of it by SIGCONT, but not for how long it stood: the lap in which it stood counts
    as the lap before.
    """

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self._last: float | None = None
        self._lap_s = 0.0
        self._stood = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCONT, self._continued)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        self._stood = True

    def start(self) -> None:
        self._last, self._stood = time.perf_counter(), False

    def lap(self) -> float:
        """Count the time since `start` or the lap before; says all seconds counted."""
        assert self._last is not None, "start the clock before its laps"
        now = time.perf_counter()
        if not self._stood:
            self._lap_s = now - self._last
        self._last, self._stood = now, False
        self.seconds += self._lap_s
        return self.seconds
