"""Classes 14 to 19 and 28 to 32: callers that are slow, leave, come all at once, or do not stop."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from functools import partial

from tests.faults.damaged import failing, photographs
from tests.faults.suite import Context, FaultClass, Seen, learn_corpus
from tests.faults.wire import (
    PATH,
    RIGHT,
    SILENT,
    Callers,
    Corpus,
    Door,
    GrpcCallers,
    HttpCallers,
    Question,
    Tally,
    after,
    ask,
    ask_at_once,
    background,
    infer_request,
    keep_asking,
    pour,
)

CALLERS = 32
FLOOD_CALLERS, FLOOD_IMAGES, FLOOD_PRIORITY = 64, 16, 1
RIVAL_S = 5.0  # in which a caller with another key is answered during the flood
OVERLOAD = 2.0  # times the capacity
EARLY = 0.2  # part of a long load after which everything has been touched once


def single(context: Context, **parameters: int) -> Callable[[int], Question]:
    """Questions for one image each, the corpus in turn; composed once."""
    questions = [context.corpus.question([place], **parameters) for place in range(len(context.corpus.images))]
    return lambda number: questions[number % len(questions)]


def load_for(
    context: Context, seconds: float, count: int = CALLERS, ask_for: Callable[[int], Question] | None = None
) -> Tally:
    """Callers over HTTP and gRPC, half each, for so long."""
    tally = Tally()
    asyncio.run(both_protocols(context, after(seconds), tally, count, ask_for))
    return tally


async def both_protocols(
    context: Context,
    over: Callable[[], bool],
    tally: Tally,
    count: int = CALLERS,
    ask_for: Callable[[int], Question] | None = None,
) -> None:
    """`count` callers until `over`, half of them over HTTP, half over gRPC."""
    chosen = ask_for or single(context)
    async with (
        HttpCallers(context.corpus, context.direct, context.scale.lost_after_s) as http,
        GrpcCallers(context.corpus, context.direct, context.scale.lost_after_s) as grpc,
    ):
        await asyncio.gather(
            keep_asking(http, chosen, count - count // 2, over, tally),
            keep_asking(grpc, chosen, count // 2, over, tally),
        )


def light_load(context: Context) -> AbstractContextManager[Tally]:
    """Eight callers in a thread during the block."""
    return background(lambda over, tally: both_protocols(context, over, tally, 8))


# ---- the classes


def slow_senders(context: Context) -> Seen:
    """Half stop in their headers, half in their body; meanwhile others are answered."""
    with ExitStack() as stack:
        for door in context.doors:
            for number in range(context.scale.slow):
                _begin_slowly(context, door, stack, in_body=number % 2 == 0)
        tally = load_for(context, context.scale.seconds, count=8)
    count = context.scale.slow * len(context.doors)
    return Seen(count, f"meanwhile: {tally}", tally.problems() + _none_right(tally))


def _begin_slowly(context: Context, door: Door, stack: ExitStack, in_body: bool) -> socket.socket:
    body, headers = infer_request(context.corpus.images[:1])
    lines = {**door.headers, **headers, "Host": "localhost", "Content-Length": str(len(body))}
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection = door.connection(context.scale.lost_after_s)
    connection.connect()
    stack.callback(connection.close)
    assert connection.sock
    connection.sock.sendall(head.encode() + b"\r\n" + body[:50] if in_body else head.encode()[:30])
    return connection.sock


def _none_right(tally: Tally) -> list[str]:
    return [] if tally.counts[RIGHT] else ["nobody was answered"]


def deadlines(context: Context) -> Seen:
    """Deadlines of callers that end before the answer comes, and Triton's own timeouts, beside patient callers."""
    with background(lambda over, tally: _hurry(context, over, tally)) as hurried:
        tally = load_for(context, context.scale.seconds, count=8)
        bounded = load_for(context, context.scale.seconds / 2, 16, single(context, timeout=1_000))
    problems = tally.problems() + bounded.problems() + hurried.problems(SILENT, "cut") + _none_right(tally)
    text = f"impatient: {hurried}; a queue timeout of 1 ms: {bounded}; patient: {tally}"
    return Seen(hurried.total + bounded.total, text, problems)


async def _hurry(context: Context, over: Callable[[], bool], tally: Tally) -> None:
    async with AsyncExitStack() as stack:
        callers: list[Callers] = []
        for timeout_s in (0.001, 0.005, 0.02):
            callers.append(await stack.enter_async_context(HttpCallers(context.corpus, context.direct, timeout_s)))
            callers.append(await stack.enter_async_context(GrpcCallers(context.corpus, context.direct, timeout_s)))
        await asyncio.gather(*(keep_asking(each, single(context), 6, over, tally) for each in callers))


def callers_that_leave(context: Context) -> Seen:
    """A complete request, and the connection reset before its answer."""
    body, headers = infer_request(context.corpus.images[:1])
    lines = {**headers, "Host": "localhost", "Content-Length": str(len(body))}
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    count, port = context.scale.slow * 3, context.server.http_port
    with light_load(context) as tally:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(head.encode() + b"\r\n" + body)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(context.scale.seconds)
    return Seen(count, f"meanwhile: {tally}", tally.problems() + _none_right(tally))


def full_queue(context: Context) -> Seen:
    """More requests at once than both queues take; each is answered or refused."""
    return _at_once(context, context.scale.queued, 1)


def bursts(context: Context) -> Seen:
    """Requests that come at once, each over a connection of its own, then a pause."""
    return _at_once(context, context.scale.burst, context.scale.bursts)


def _at_once(context: Context, count: int, rounds: int) -> Seen:
    tally, ask_for = Tally(), single(context)

    async def run() -> None:
        for number in range(rounds):
            protocol = GrpcCallers if number % 2 or rounds == 1 else HttpCallers
            async with protocol(context.corpus, context.direct, context.scale.lost_after_s) as callers:
                await ask_at_once(callers, [ask_for(place) for place in range(count)], tally)

    asyncio.run(run())
    return Seen(count * rounds, str(tally), tally.problems() + _none_right(tally))


def overload(context: Context) -> Seen:
    """Twice the capacity, from callers that do not wait for answers."""
    rate, tally = twice_the_capacity(context), Tally()
    asyncio.run(pour_both(context, rate, after(context.scale.overload_s), tally))
    text = f"{rate:.0f} requests/s: {tally}; the slowest right answer after {tally.slowest_s:.1f} s"
    return Seen(tally.total, text, tally.problems() + _none_right(tally))


def twice_the_capacity(context: Context) -> float:
    """Measure what callers that wait get answered; returns twice that, in requests a second."""
    seconds = max(1.0, context.scale.seconds)
    return OVERLOAD * load_for(context, seconds, 2 * CALLERS).counts[RIGHT] / seconds


async def pour_both(context: Context, rate_per_s: float, over: Callable[[], bool], tally: Tally) -> None:
    """Send at a rate until `over`, half over each protocol, whatever is answered."""
    async with (
        HttpCallers(context.corpus, context.direct, context.scale.lost_after_s) as http,
        GrpcCallers(context.corpus, context.direct, context.scale.lost_after_s) as grpc,
    ):
        await asyncio.gather(*(pour(each, single(context), rate_per_s / 2, over, tally) for each in (http, grpc)))


def failing_images(context: Context) -> Seen:
    """Images that cannot be decoded, over and over; each is refused as the caller's fault, and memory stays flat."""
    bad = failing()
    corpus = Corpus(bad, context.corpus.answers[: len(bad)])
    questions = [corpus.question([place]) for place in range(len(bad))]
    tally = Tally()

    async def send(count: int) -> None:
        left = iter(range(count))
        async with HttpCallers(corpus, context.direct, context.scale.lost_after_s) as http:
            await keep_asking(
                http, lambda number: questions[number % len(questions)], 16, partial(_used_up, left), tally
            )

    early = int(context.scale.failing * EARLY)
    asyncio.run(send(early))
    context.mark_memory()
    asyncio.run(send(context.scale.failing - early))
    return Seen(tally.total, str(tally), tally.problems("HTTP 400") + _answered(tally))


def _used_up(left: Iterator[int]) -> bool:
    return next(left, None) is None


def _answered(tally: Tally) -> list[str]:
    return ["an image that is none was answered"] if tally.counts[RIGHT] else []


def soak(context: Context) -> Seen:
    """Photographs of 0.1 to 12 megapixels and the corpus, connections that close after each request, both protocols."""
    large = photographs(context.seed)
    images = [*context.corpus.images, *large]
    corpus = learn_corpus(context.server, images)
    questions = [corpus.question([place]) for place in range(len(images))]
    tally = Tally()

    async def run(seconds: float) -> None:
        over = after(seconds)
        async with (
            HttpCallers(corpus, context.direct, context.scale.lost_after_s, keep_alive=False) as http,
            GrpcCallers(corpus, context.direct, context.scale.lost_after_s) as grpc,
        ):
            await asyncio.gather(
                *(
                    keep_asking(each, lambda number: questions[number % len(questions)], 16, over, tally)
                    for each in (http, grpc)
                )
            )

    asyncio.run(run(EARLY * context.scale.soak_s))
    context.mark_memory()
    asyncio.run(run((1 - EARLY) * context.scale.soak_s))
    assert context.memory
    now = context.settled().memory_mib
    text = f"{tally}; {context.memory.memory_mib:.0f} MiB after {EARLY:.0%} of it, {now:.0f} at the end"
    return Seen(tally.total, text, tally.problems() + _none_right(tally))


def many_batch_sizes(context: Context) -> Seen:
    """Requests of 1 to 16 images over both protocols at once, each answer compared with those of its images alone."""
    random = context.random(30)
    places = range(len(context.corpus.images))
    questions = [context.corpus.question(random.choices(places, k=size)) for size in range(1, 17) for _ in range(3)]
    tally = load_for(context, context.scale.seconds * 2, CALLERS, lambda number: questions[number % len(questions)])
    return Seen(tally.total, str(tally), tally.problems() + _none_right(tally))


def priority_flood(context: Context) -> Seen:
    """The flood of priority 1, directly and through the gateway, where a caller with another key is answered too."""
    questions = _flood_questions(context)
    direct = Tally()
    asyncio.run(_flood(context, context.direct, questions, after(context.scale.flood_s), direct))
    context.mark_memory()
    text, problems = f"directly: {direct}", direct.problems() + _none_right(direct)
    if context.rival:
        rival = context.rival
        small = [_smallest_question(context)]
        with background(lambda over, tally: _flood(context, context.gateway, small, over, tally)) as through:
            answered = _rival_answers(context, rival)
        text += f"; through the gateway: {through}; {answered}"
        problems += through.problems() + _rival_problems(answered)
        return Seen(direct.total + through.total, text, problems)
    return Seen(direct.total, text, problems)


def _flood_questions(context: Context) -> Sequence[Question]:
    return [
        context.corpus.question(range(start, start + FLOOD_IMAGES), priority=FLOOD_PRIORITY)
        for start in range(0, len(context.corpus.images), 3)
    ]


def _smallest_question(context: Context) -> Question:
    """Of the smallest images: the gateway refuses a priority above a megabyte, instead of taking it out."""
    images = context.corpus.images
    places = sorted(range(len(images)), key=lambda place: len(images[place]))
    return context.corpus.question(places[:FLOOD_IMAGES], priority=FLOOD_PRIORITY)


async def _flood(
    context: Context, door: Door, questions: Sequence[Question], over: Callable[[], bool], tally: Tally
) -> None:
    async with HttpCallers(context.corpus, door, context.scale.lost_after_s) as http:
        await keep_asking(http, lambda number: questions[number % len(questions)], FLOOD_CALLERS, over, tally)


class RivalAnswers(Tally):
    """Of the caller with another key; `slowest_s` counts its waits."""

    def __str__(self) -> str:
        return f"another key: {super().__str__()}, the slowest after {self.slowest_s:.1f} s"


def _rival_answers(context: Context, rival: Door) -> RivalAnswers:
    answers, over, place = RivalAnswers(), after(context.scale.flood_s), 0
    while not over():
        place += 1
        question, started = context.corpus.question([place]), time.perf_counter()
        outcome, answer = ask(rival, question.body, question.headers)
        judged = context.corpus.judge_json(question, answer) if outcome == "HTTP 200" else outcome
        answers.add(judged, time.perf_counter() - started)
        time.sleep(0.1)
    return answers


def _rival_problems(answers: RivalAnswers) -> list[str]:
    problems = [f"{count} requests of another key: {name}" for name, count in answers.counts.items() if name != RIGHT]
    if answers.slowest_s > RIVAL_S:
        problems.append(f"another key was answered after {answers.slowest_s:.1f} s, not {RIVAL_S:g}")
    return problems


def thousand_connections(context: Context) -> Seen:
    """So many callers at once, over HTTP and then over gRPC; each waits for its answer, and after a refusal."""
    tally = Tally()

    async def run(callers: Callers) -> None:
        async with callers:
            over = after(context.scale.seconds * 2)
            await keep_asking(callers, single(context), context.scale.connections, over, tally)

    asyncio.run(run(HttpCallers(context.corpus, context.direct, context.scale.lost_after_s)))
    asyncio.run(run(GrpcCallers(context.corpus, context.direct, context.scale.lost_after_s, channels=16)))
    return Seen(context.scale.connections * 2, str(tally), tally.problems() + _none_right(tally))


CLASSES = [
    FaultClass(14, "slow senders", "stop in headers and bodies; others ask meanwhile", slow_senders),
    FaultClass(15, "deadlines", "of callers from 1 ms, and Triton's queue timeout of 1 ms", deadlines),
    FaultClass(16, "callers that leave", "connections reset while their request waits", callers_that_leave),
    FaultClass(17, "a full queue", "more requests at once than the queues take", full_queue),
    FaultClass(18, "bursts", "requests at once, each over its own connection", bursts),
    FaultClass(19, "twice the capacity", "requests that do not wait for answers", overload, repeats=False),
    FaultClass(28, "failing images", "images that cannot be decoded; memory flat", failing_images, repeats=False),
    FaultClass(29, "a soak", "0.1 to 12 megapixels, closing connections, both protocols", soak, repeats=False),
    FaultClass(30, "many batch sizes", "1 to 16 images, both protocols, every answer compared", many_batch_sizes),
    FaultClass(31, "the priority flood", "64 callers, priority 1, 16 images a request", priority_flood, repeats=False),
    FaultClass(32, "a thousand connections", "over HTTP, then over gRPC", thousand_connections),
]
