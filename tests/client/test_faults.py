"""Servers that vanish, return, stall and lie: a right answer after a retry, or the fault's own exception in time."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest

from alexnet_triton.client import Classification, Classifier, Config
from alexnet_triton.client.errors import BadAnswer, DeadlineExceeded, ServerError, Unreachable
from alexnet_triton.client.servers import Deadline
from alexnet_triton.client.session import Session
from answers import agree, by_torch
from embedded_triton import Triton, dead_port
from photographs import jpeg
from proxy import Last, Proxy, honest, proxied
from tests.waiting import wait_for

IMAGES = [jpeg(seed) for seed in range(12)]


@pytest.fixture(params=["grpc", "http"])
def proxy(request: pytest.FixtureRequest, triton: Triton) -> Iterator[tuple[Proxy, str]]:
    target = triton.grpc_port if request.param == "grpc" else triton.http_port
    with proxied(target) as between:
        yield between, f"{request.param}://127.0.0.1:{between.port}"


def right(results: object) -> bool:
    return all(agree(result, by_torch(image)) for result, image in zip(results, IMAGES, strict=True))  # type: ignore[call-overload]


def test_connections_that_are_cut_again_and_again(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.15):
            between.cut()

    with Classifier(url, concurrency=4) as classifier:
        classifier.classify(IMAGES[0])
        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            for _ in range(10):
                assert right(classifier.classify_many(IMAGES))
        finally:
            over.set()
            cutter.join()
    assert between.connections > 2


def test_connections_that_are_dropped_before_the_answer(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    with Classifier(url, concurrency=4) as classifier:
        classifier.classify(IMAGES[0])
        between.cut()
        doomed = between.connections + 3
        between.fault = lambda number, data: None if number <= doomed else data
        assert right(classifier.classify_many(IMAGES))
    assert between.connections > doomed


def test_answers_that_are_cut_in_the_middle(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    with Classifier(url, concurrency=2) as classifier:
        classifier.classify(IMAGES[0])
        between.cut()
        doomed = between.connections + 2
        between.fault = lambda number, data: data if number > doomed else Last(data[: len(data) // 2])
        assert right(classifier.classify_many(IMAGES))
    assert between.connections > doomed


def test_a_stream_that_is_reset_is_a_connection_that_broke(triton: Triton) -> None:
    """As nginx resets it where its Triton is gone in the middle of an answer: the request is sent again."""
    resets = 0

    def reset_once(number: int, data: bytes) -> bytes:
        nonlocal resets
        stream = stream_of_headers(data)
        if resets or not stream:
            return data
        resets += 1
        return b"\0\0\4\3\0" + stream + b"\0\0\0\2"  # RST_STREAM, INTERNAL_ERROR: RFC 9113, 6.4

    with proxied(triton.grpc_port) as between, Classifier(f"grpc://127.0.0.1:{between.port}") as classifier:
        classifier.classify(IMAGES[0])
        between.fault = reset_once
        result = classifier.classify(IMAGES[1])
        assert (agree(result, by_torch(IMAGES[1])), resets, result.timing.attempts) == (True, 1, 2)
        resets = 0
        with Classifier(f"grpc://127.0.0.1:{between.port}", retries=0) as once, pytest.raises(Unreachable):
            once.classify(IMAGES[1])


def stream_of_headers(data: bytes) -> bytes:
    """The number of the first stream of HTTP/2 with headers in these frames, 4 bytes; nothing where there is none."""
    start = 0
    while start + 9 <= len(data):
        if data[start + 3] == 1:
            return data[start + 5 : start + 9]
        start += 9 + int.from_bytes(data[start : start + 3], "big")
    return b""


def test_answers_that_are_noise_end_in_a_right_answer_when_it_stops(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    noise = random.Random(1)
    with Classifier(url, concurrency=2) as classifier:
        classifier.classify(IMAGES[0])
        between.cut()
        doomed = between.connections + 2
        between.fault = lambda number, data: data if number > doomed else noise.randbytes(len(data))
        assert right(classifier.classify_many(IMAGES))


def test_answers_that_stay_noise_end_in_an_exception(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    between.fault = lambda number, data: b"\xff" * len(data)
    with Classifier(url, timeout_s=3, retries=2) as classifier:
        with pytest.raises((BadAnswer, Unreachable, DeadlineExceeded)) as caught:
            classifier.classify(IMAGES[0])
        assert f"127.0.0.1:{between.port}" in str(caught.value)


def test_delayed_answers_are_waited_for(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    between.delay_s = 0.2
    with Classifier(url) as classifier:
        assert agree(classifier.classify(IMAGES[1]), by_torch(IMAGES[1]))


def test_an_answer_that_never_comes_ends_at_the_deadline(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    with Classifier(url, timeout_s=1.5) as classifier:
        classifier.classify(IMAGES[0])
        between.fault = lambda number, data: b""
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            classifier.classify(IMAGES[0])
        assert 1.4 < time.monotonic() - start < 30  # it waited as long as it was told, and came back
        between.fault = honest
    assert "--timeout" in str(caught.value)


def test_a_lost_server_is_replaced_by_the_next(triton: Triton, proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    with Classifier(url, triton.urls["http"]) as classifier:
        assert classifier.classify(IMAGES[0]).timing.host == f"127.0.0.1:{between.port}"
        between.fault = lambda number, data: None
        between.cut()
        result = classifier.classify(IMAGES[1])
        assert result.timing.host == f"127.0.0.1:{triton.http_port}"
        assert agree(result, by_torch(IMAGES[1]))
        between.fault = honest
        wait_for(lambda: classifier.classify(IMAGES[0]).timing.host == f"127.0.0.1:{between.port}")


def test_an_answer_in_flight_ends_the_wait_for_a_lost_server(url: str) -> None:
    async def wait() -> bool:
        session = Session(Config(urls=(url,)))
        pool, (endpoint,) = session.pool, session.pool.endpoints
        pool.succeeded(endpoint)
        pool.failed(endpoint, Unreachable("its connection broke"))
        assert endpoint.probe is not None
        endpoint.probe.cancel()
        waiting = asyncio.create_task(pool.pick(Deadline(60)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        pool.succeeded(endpoint)
        picked = await asyncio.wait_for(waiting, 5)
        await session.close()
        return picked is endpoint

    assert asyncio.run(wait())


def test_a_stalled_server_is_replaced_within_the_deadline(triton: Triton, proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    with Classifier(url, triton.urls["grpc"], timeout_s=4) as classifier:
        classifier.classify(IMAGES[0])
        between.fault = lambda number, data: b""
        result = classifier.classify(IMAGES[1])
    assert (result.timing.host, result.timing.attempts) == (f"127.0.0.1:{triton.grpc_port}", 2)


def test_a_slow_answer_is_overtaken_by_a_second_request(triton: Triton, proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    with Classifier(url, triton.urls["grpc"], hedge_s=0.2) as classifier:
        classifier.classify(IMAGES[0])
        between.delay_s = 3
        result = classifier.classify(IMAGES[1])
        assert result.timing.host == f"127.0.0.1:{triton.grpc_port}"
        assert agree(result, by_torch(IMAGES[1]))
        between.delay_s = 0


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_there(scheme: str) -> None:
    expected = "cannot connect: connection refused; start it with `make serve`"
    with (
        dead_port() as port,
        Classifier(f"{scheme}://127.0.0.1:{port}") as classifier,
        pytest.raises(Unreachable, match=expected),
    ):
        classifier.classify(IMAGES[0])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_server_is_killed_and_started_again_in_the_middle(scheme: str, own: Triton) -> None:
    with Classifier(own.urls[scheme], concurrency=8, timeout_s=60) as classifier:
        results: list[object] = []
        for number, result in enumerate(classifier.classify_many(IMAGES[number % 12] for number in range(400))):
            results.append(result)
            if number == 100:
                own.kill()
                starting = threading.Timer(0.5, own.start)
                starting.start()
    starting.join()
    assert len(results) == 400
    assert all(isinstance(result, Classification) for result in results)
    assert all(agree(result, by_torch(IMAGES[number % 12])) for number, result in enumerate(results))
    assert max(result.timing.attempts for result in results if isinstance(result, Classification)) > 1


def test_every_exception_is_one_of_the_tree(proxy: tuple[Proxy, str]) -> None:
    between, url = proxy
    faults = [lambda number, data: None, lambda number, data: data[:7], lambda number, data: b"HTTP/1.1 299 ?\r\n\r\n"]
    for fault in faults:
        between.fault = fault
        with Classifier(url, timeout_s=1, retries=1) as classifier, pytest.raises(ServerError) as caught:
            classifier.classify(IMAGES[0])
        assert "\n" not in str(caught.value)
