"""The classes of faults as data, what they are done to, and the checks that hold after each of them."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alexnet_triton.common.command import printable
from tests.faults.server import FaultSuiteError, Footprint, ServedCopy
from tests.faults.wire import CUT, CUT_REASONS, RIGHT, Corpus, Door, Tally, after, ask

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"
GROWTH = 0.05  # of memory, from the first repetition to the end
SETTLE_S = 5.0  # for processes that end and shared memory that is freed
HEALTHY_S = 5.0  # from a fault's end to the right answer for the reference image
GIVE_UP_S = 90.0  # after which the next class cannot be begun


class NotRunError(Exception):
    """A class of faults that this machine cannot be given; the message says why."""


@dataclass(frozen=True)
class Scale:
    """How much is sent, and for how long.

    Attributes:
        repetitions: of the short classes; between two, memory is compared.
        seconds: of an ordinary load.
        images: of the corpus.
        http, grpc: mutated requests.
        failing: requests with images that cannot be decoded.
        corrupt: starts on a copy of the repository with one file damaged.
        queued: requests that are sent at once to fill a queue.
        healthy_s: from a fault's end to the right answer.
        lost_after_s: without an answer; no wait in the queues is as long.
    """

    name: str
    repetitions: int = 2
    seconds: float = 5.0
    flood_s: float = 60.0
    overload_s: float = 60.0
    soak_s: float = 600.0
    images: int = 60
    http: int = 10_000
    grpc: int = 2_000
    chunks: int = 1_000_000
    failing: int = 10_000
    queued: int = 4_000
    burst: int = 1_000
    bursts: int = 3
    connections: int = 1_000
    slow: int = 200
    kills: int = 2
    corrupt: int = 8
    healthy_s: float = HEALTHY_S
    lost_after_s: float = 30.0


FULL = Scale("full")
QUICK = Scale(
    "quick", repetitions=1, seconds=1.5, flood_s=6, overload_s=6, soak_s=12, http=1_000, grpc=300, chunks=200_000,
    failing=1_000, bursts=1, slow=100, kills=1, lost_after_s=15,
)  # fmt: skip
TINY = Scale(
    "tiny", repetitions=1, seconds=0.5, flood_s=1, overload_s=1, soak_s=1.5, images=12, http=60, grpc=40,
    chunks=5_000, failing=60, queued=200, burst=100, bursts=1, connections=100, slow=10, kills=1, corrupt=4,
    healthy_s=60, lost_after_s=15,
)  # fmt: skip


@dataclass
class Seen:
    """What a class of faults met with: how often it was done, in words what came of it, and what is wrong with that."""

    times: int
    text: str
    problems: list[str] = field(default_factory=list)


@dataclass
class Context:
    """What the faults are done to, and with what.

    Attributes:
        corpus: images with the answers of the undisturbed server.
        doors: the way to the server, and where nginx is installed that through the gateway.
        rival: the gateway with another caller's key.
        model: what is published during other faults; `pictures` gives its reference image.
        memory: the server's after the first repetition of a class, once `mark_memory` was called.
        fresh: the footprint of the server when it was started.
        baseline: what is compared with the footprint at a class's end.
    """

    server: ServedCopy
    corpus: Corpus
    doors: Sequence[Door]
    scale: Scale
    fresh: Footprint
    rival: Door | None = None
    model: Path | None = None
    pictures: Path | None = None
    seed: int = 15
    memory: Footprint | None = None
    baseline: Footprint | None = None
    restarts_expected: int = 0

    @property
    def direct(self) -> Door:
        return self.doors[0]

    @property
    def gateway(self) -> Door:
        """The gateway's door.

        Raises:
            NotRunError: nginx is not installed.
        """
        if len(self.doors) < 2:
            raise NotRunError("no gateway: `make gateway` installs nginx")
        return self.doors[1]

    def random(self, number: int) -> random.Random:
        """A source of chance for class `number`, the same in each run."""
        return random.Random(f"{self.seed} {number}")

    def mark_memory(self) -> None:
        """Note what the server takes after the first repetition of a fault that repeats itself."""
        self.memory = self.settled()

    def mark_baseline(self) -> None:
        """Compare what is left at the end of the class with what is there now: a version more may be loaded."""
        self.baseline = self.settled()

    def settled(self) -> Footprint:
        """The footprint, as soon as two in a row are alike, within `SETTLE_S`."""
        over, last = after(SETTLE_S), self.server.counts()
        while not over():
            time.sleep(0.3)
            now = self.server.counts()
            if now == last:
                break
            last = now
        return self.server.footprint()

    def expect_right(self, place: int, tally: Tally) -> None:
        """Ask one valid question between faults, and count the answer."""
        question = self.corpus.question([place])
        status, answer = ask(self.direct, question.body, question.headers)
        tally.add(self.corpus.judge_json(question, answer) if status == "HTTP 200" else status)

    def recover(self, problems: list[str]) -> float:
        """Wait for the right answer after a fault; returns the seconds, and notes when they are too many."""
        seconds = self.server.seconds_to_right_answer(GIVE_UP_S)
        if seconds > self.scale.healthy_s:
            problems.append(f"healthy again after {seconds:.1f} s, not {self.scale.healthy_s:g}")
        return seconds


@dataclass(frozen=True)
class FaultClass:
    """One of the classes. `repeats`: done as often as the scale says, to compare memory; others compare themselves."""

    number: int
    name: str
    done: str
    run: Callable[[Context], Seen]
    repeats: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the table. `times` counts requests, kills, starts: whatever the class does."""

    number: int
    name: str
    done: str
    times: int
    seen: str
    verdict: str
    seconds: float


def run_class(context: Context, fault: FaultClass) -> Row:
    """Do the faults of a class, and check what holds after all of them.

    Raises:
        FaultSuiteError: the class before has left a server that cannot be started anew.
    """
    started = time.monotonic()
    repetitions = context.scale.repetitions if fault.repeats else 1
    if not context.server.answers_rightly():
        _start_anew(context)
    context.baseline, context.memory = context.settled(), None
    restarts, pid, context.restarts_expected = context.server.metric("alexnet_restarts_total"), _pid(context), 0
    CUT_REASONS.clear()
    parts: list[Seen] = []
    for number in range(repetitions):
        try:
            parts.append(fault.run(context))
        except NotRunError as reason:
            return Row(fault.number, fault.name, fault.done, 0, "", f"{NOT_RUN}: {reason}", time.monotonic() - started)
        except Exception as error:  # whatever it is, the other classes are still run
            parts.append(Seen(0, "", [f"{type(error).__name__}: {printable(str(error))[:200]}"]))
        context.recover(parts[-1].problems)
        if number == 0 and repetitions > 1:
            context.mark_memory()
    problems = list(dict.fromkeys(problem for part in parts for problem in part.problems))
    problems += _check_left(context, context.baseline, same_process=pid == _pid(context))
    restarted = context.server.metric("alexnet_restarts_total") - restarts
    if restarted > context.restarts_expected:
        problems.append(f"{restarted:.0f} restarts of the server, not {context.restarts_expected}")
    if any(problem.endswith(CUT) for problem in problems):
        problems += [f"{count} {CUT}: {printable(reason)[:200]}" for reason, count in CUT_REASONS.most_common(3)]
    times = sum(part.times for part in parts)
    text = "; ".join(dict.fromkeys(part.text for part in parts if part.text))
    seen = f"{text}; NOT: {'; '.join(problems)}" if problems else text
    verdict = FAILED if problems else PASSED
    return Row(fault.number, fault.name, fault.done, times, seen, verdict, time.monotonic() - started)


def _start_anew(context: Context) -> None:
    """A server that the class before has broken for good breaks no other class."""
    if context.recover([]) == float("inf"):
        context.server.stop()
        context.server.start()


def _pid(context: Context) -> int:
    try:
        return context.server.tritonserver
    except FaultSuiteError:
        return 0


def _check_left(context: Context, before: Footprint, same_process: bool) -> list[str]:
    """What is left behind, and whether memory grew; a server that was started anew has a memory of its own."""
    over, now = after(SETTLE_S), context.settled()
    while now.processes > before.processes and not over():
        now = context.settled()
    problems = []
    if now.processes > before.processes or now.processes < context.fresh.processes:
        problems.append(f"{now.processes} processes, {before.processes} before")
    if now.shared_names > before.shared_names or now.shared_names < context.fresh.shared_names:
        problems.append(f"{now.shared_names} names in /dev/shm, {before.shared_names} before")
    if context.memory and same_process and now.memory_mib > (1 + GROWTH) * context.memory.memory_mib:
        problems.append(f"memory {context.memory.memory_mib:.0f} MiB, then {now.memory_mib:.0f}")
    return problems


def learn_corpus(server: ServedCopy, images: Sequence[bytes]) -> Corpus:
    """The images with the server's own answers to each, asked alone."""
    return Corpus(images, np.array([server.control.classify(image)[1] for image in images]))


def summarise(tally: Tally, between: Tally | None = None) -> tuple[str, list[str]]:
    """What came of a load, and of the valid questions that were asked meanwhile: text and problems."""
    if between is None:
        return str(tally), tally.problems()
    problems = [f"valid requests meanwhile: {name}" for name in between.counts if name != RIGHT]
    return f"{tally}; {between.counts[RIGHT]} valid requests between them answered rightly", problems
