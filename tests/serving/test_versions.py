"""A new version under load: nobody is refused, and nobody gets one version's answer under another's name."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from alexnet_triton.serving import ControlError, Server
from tests.serving.tiny import answer, build_repository, jpeg, network, publish, switch

SEEDS = {"1": 0, "2": 1}


def test_publishing_and_rolling_back_under_load(tmp_path: Path) -> None:
    repository = build_repository(tmp_path / "built")
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server, _load(server) as answers:
        publish(repository, 2, seed=SEEDS["2"])
        server.control.load("alexnet")
        server.check()
        assert server.control.versions("alexnet") == ["1", "2"]
        assert server.control.versions("classify") == ["1"]
        server.control.load("classify")
        server.check()
        assert server.control.classify(jpeg(seed=3))[0] == "2"
        switch(repository, 1)
        server.control.load("classify")
        assert server.control.classify(jpeg(seed=3))[0] == "1"
    assert {version for version, _ in answers} == {"1", "2"}
    expected = {version: answer(network(seed), jpeg(seed=3)) for version, seed in SEEDS.items()}
    for version, probabilities in answers:
        np.testing.assert_allclose(probabilities, expected[version], atol=1e-4)


@contextmanager
def _load(server: Server) -> Iterator[list[tuple[str, list[float]]]]:
    """Four callers, one request after another; whatever refuses one of them fails the test."""
    answers: list[tuple[str, list[float]]] = []
    refusals: list[str] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                answers.append(server.control.classify(jpeg(seed=3), timeout_s=30))
            except ControlError as error:
                refusals.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        yield answers
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert refusals == []
