"""One classifier, many threads and processes: right answers to the right callers."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from alexnet_triton.client import Classifier
from answers import agree, by_torch
from photographs import jpeg

THREADS = 32
CALLS = int(os.environ.get("CLIENT_TEST_CALLS", "100"))  # of each thread
CHILD_TIMEOUT_S = 30


def test_thirty_two_threads_on_one_classifier(url: str) -> None:
    images = [jpeg(seed) for seed in range(THREADS)]
    expected = [by_torch(image) for image in images]

    def call(thread: int) -> int:
        return sum(agree(classifier.classify(images[thread]), expected[thread]) for _ in range(CALLS))

    with Classifier(url, concurrency=THREADS) as classifier, ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(call, range(THREADS))) == [CALLS] * THREADS


def test_children_of_a_process_at_work(url: str) -> None:
    images = [jpeg(seed) for seed in range(4)]
    expected = [by_torch(image) for image in images]
    over = threading.Event()
    wrong: list[int] = []

    def work(number: int) -> None:
        while not over.is_set():
            if not agree(classifier.classify(images[number]), expected[number]):
                wrong.append(number)

    with Classifier(url) as classifier:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                assert in_child(lambda: all(map(agree, map(classifier.classify, images), expected)))
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert agree(classifier.classify(images[0]), expected[0])
    assert not wrong


def in_child(truth: Callable[[], bool]) -> bool:
    """Whether it is true in a forked process, which has to say so in time."""
    pid = os.fork()
    if pid == 0:
        threading.Timer(CHILD_TIMEOUT_S, os._exit, [2]).start()
        try:
            os._exit(0 if truth() else 1)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_stream_of_results_survives_a_fork(url: str) -> None:
    images = [jpeg(seed) for seed in range(6)]
    with Classifier(url, concurrency=2) as classifier:
        results = classifier.classify_many(images * 10)
        got = [next(results) for _ in range(20)]
        assert in_child(lambda: agree(classifier.classify(images[0]), by_torch(images[0])))
        got += results
    expected = [by_torch(image) for image in images] * 10
    assert all(agree(result, each) for result, each in zip(got, expected, strict=True))
