"""Callers that check every answer, while something is done to the server."""

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from serving.control import Control
from serving.errors import ControlError

COUNT = 8
TOLERANCE = 0.02  # INT8 in batches of different sizes
PAUSE_S = 0.02  # after a refusal


class Callers:
    """Threads that ask one image each, again and again, and compare what they get with the first answer."""

    def __init__(self, control: Control, bodies: Sequence[bytes]) -> None:
        self._control = control
        self._bodies = bodies[:COUNT]
        self._expected = [np.array(control.classify(body)[1]) for body in self._bodies]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(COUNT)]
        self.last_right = [0.0] * COUNT  # when each asked for what was answered rightly last
        self.answered, self.wrong = 0, 0
        self._problems: list[tuple[float, str]] = []  # when it was asked, what became of it

    def all_answered_since(self, moment: float) -> bool:
        """Whether every caller has been answered rightly what it asked after `moment`."""
        return all(asked > moment for asked in self.last_right)

    def problems(self, since: float = 0.0, until: float = math.inf) -> Counter[str]:
        """What became of the requests that were asked between two moments and not answered."""
        return Counter(kind for asked, kind in self._problems if since <= asked < until)

    def _call(self, number: int) -> None:
        while not self._stopped.is_set():
            asked = time.perf_counter()
            try:
                _, probabilities = self._control.classify(self._bodies[number], timeout_s=20)
            except ControlError as error:
                self._problems.append((asked, _kind(error)))
                time.sleep(PAUSE_S)
                continue
            self.answered += 1
            if np.abs(np.array(probabilities) - self._expected[number]).max() > TOLERANCE:
                self.wrong += 1
            else:
                self.last_right[number] = asked

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def _kind(error: ControlError) -> str:
    if error.status:
        return f"refused with {error.status}"
    return "not connected" if isinstance(error.__cause__, ConnectionRefusedError) else "cut"
