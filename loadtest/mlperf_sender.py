"""Between LoadGen's threads and the event loop that talks to the server."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from loadtest.answers import TIMEOUT, Answer, Fault
from loadtest.cases import Case, Target
from loadtest.engine import Sender, make_sender
from loadtest.workload import Deck, Request, Workload

CONNECTIONS = 1024
TIMEOUT_S = 30.0
Answered = Callable[[Sequence[int], Answer], None]


class Sending:
    """Sends samples in requests of at most `batch` images, with at most `in_flight` requests at a time."""

    def __init__(self, target: Target, batch: int, in_flight: int | None, answered: Answered) -> None:
        self._target, self._batch, self._most, self._answered = target, batch, in_flight, answered
        self._waiting: deque[tuple[int, Case]] = deque()
        self._sent: dict[Request, list[int]] = {}
        self._deck = Deck(target, (), Workload())
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sending", daemon=True)

    def start(self) -> None:
        """Connect.

        Raises:
            OSError and the like: what kept it from connecting.
        """
        self._thread.start()
        self._ready.wait()
        if self._failed:
            raise self._failed

    def put(self, samples: list[tuple[int, Case]]) -> None:
        """Send samples, from any thread. LoadGen, which cannot be told to stop, goes on after `close`: to nobody."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._take, samples)

    def close(self) -> None:
        """Drop the connections."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender: Sender = make_sender(self._target, CONNECTIONS, TIMEOUT_S, self._done)
        await self._sender.start()
        self._ready.set()
        sweeping = asyncio.create_task(self._sweep())
        await self._over.wait()
        sweeping.cancel()
        await self._sender.close()

    def _take(self, samples: list[tuple[int, Case]]) -> None:
        self._waiting.extend(samples)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and (self._most is None or len(self._sent) < self._most):
            part = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            request = self._deck.encode([case for _, case in part])
            request.intended_s = request.sent_s = time.perf_counter()
            self._sent[request] = [number for number, _ in part]
            self._sender.send(request)

    def _done(self, request: Request, answer: Answer) -> None:
        request.finished = True
        ids = self._sent.pop(request, None)
        if ids:
            self._answered(ids, answer)
            self._fill()

    async def _sweep(self) -> None:
        """A sample without an answer would let LoadGen wait for ever."""
        while True:
            await asyncio.sleep(1.0)
            given_up_s = time.perf_counter() - TIMEOUT_S
            for request in [each for each in self._sent if each.sent_s < given_up_s]:
                self._done(request, Fault(TIMEOUT))
