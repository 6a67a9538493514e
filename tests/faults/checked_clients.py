"""Callers that send one image each, again and again, and check every answer: what a kill costs them."""

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from alexnet_triton.serving.control import Control
from alexnet_triton.serving.errors import ControlError

CLIENTS = 8
TOLERANCE = 0.02  # between probabilities: INT8 in batches of different sizes
PAUSE_S = 0.02  # after a refusal
LEARN_TRIES = 500


class CheckedClients:
    """Threads that send one image each, again and again, and compare the answers with the first one."""

    def __init__(self, control: Control, bodies: Sequence[bytes]) -> None:
        self._control = control
        self._bodies = bodies[:CLIENTS]
        self._expected = [self._learn(body) for body in self._bodies]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        self._last_right = [0.0] * CLIENTS  # when each client sent its last request that was answered rightly
        self._problems: list[tuple[float, str]] = []  # when a request was sent, and what became of it
        self.answered, self.wrong = 0, 0

    def _learn(self, body: bytes) -> np.ndarray:
        """The answer to be expected: a stub that was killed before may be missing still."""
        for _ in range(LEARN_TRIES):
            with suppress(ControlError):
                return np.array(self._control.classify(body)[1])
            time.sleep(PAUSE_S)
        return np.array(self._control.classify(body)[1])

    def all_answered_since(self, moment: float) -> bool:
        """Whether every client has a right answer to a request that it sent after `moment`."""
        return all(sent > moment for sent in self._last_right)

    def problems(self, since: float = 0.0, until: float = math.inf) -> Counter[str]:
        """What became of the requests that were sent between two moments and not answered."""
        return Counter(kind for sent, kind in self._problems if since <= sent < until)

    def _run(self, number: int) -> None:
        while not self._stopped.is_set():
            sent = time.perf_counter()
            try:
                _, probabilities = self._control.classify(self._bodies[number], timeout_s=20)
            except ControlError as error:
                self._problems.append((sent, _describe_problem(error)))
                time.sleep(PAUSE_S)
                continue
            self.answered += 1
            if np.abs(np.array(probabilities) - self._expected[number]).max() > TOLERANCE:
                self.wrong += 1
            else:
                self._last_right[number] = sent

    def __enter__(self) -> "CheckedClients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def _describe_problem(error: ControlError) -> str:
    if error.status:
        return f"refused with {error.status}"
    return "not connected" if isinstance(error.__cause__, ConnectionRefusedError) else "cut"
