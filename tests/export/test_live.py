"""Publishing, rolling back and failing to publish while 32 clients ask without pause."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from alexnet_triton.export import publish
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.repository import served_version, versions, write_version
from alexnet_triton.serving.server import Server
from tests.serving.tiny import answer, network, publication, running_server

CLIENTS = 32


Answer = tuple[str, int]  # version, class


@contextmanager
def asking(server: Server, image: bytes) -> Iterator[list[list[Answer]]]:
    """32 clients, one request after another each; any failed request fails the test.

    Yields the answers of each client, once each has had one. Ends when each has had another after the block.
    """
    answers: list[list[Answer]] = [[] for _ in range(CLIENTS)]
    started, stop = threading.Barrier(CLIENTS + 1, timeout=60), threading.Event()

    def ask(client: tritonclient.grpc.InferenceServerClient, own: list[Answer]) -> None:
        tensor = tritonclient.grpc.InferInput("encoded", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        last = False
        while not last:
            last = stop.is_set()
            result = client.infer("classify", [tensor], client_timeout=60)
            own.append((result.get_response().model_version, int(result.as_numpy("probabilities").argmax())))
            if len(own) == 1:
                started.wait()

    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, client, own) for own in answers]
        try:
            started.wait()
            yield answers
        finally:
            stop.set()
        for each in clients:
            each.result()


def changes(answers: list[list[Answer]]) -> set[tuple[Answer, ...]]:
    """What each client saw, one entry for every change of answer."""
    return {tuple(answer for answer, _ in itertools.groupby(own)) for own in answers}


def test_publish_rollback_and_broken_publications_under_load(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"

    def publish_seed(seed: int, **changes: object) -> None:
        version = write_version(repository, replace(publication(tmp_path, seed), **changes))
        publish.serve_version(repository, version, new=True)

    publish_seed(0)
    image = (repository / "classify" / "1" / "reference.jpg").read_bytes()
    with running_server(repository) as server:
        with asking(server, image) as answers:
            publish_seed(1)
        ((old, new),) = changes(answers)
        expected = [int(answer(network(seed), image).argmax()) for seed in (0, 1)]
        assert (old, new) == (("1", expected[0]), ("2", expected[1]))
        assert new[1] != old[1]
        assert (server.control.versions("alexnet"), server.control.versions("classify")) == (["1", "2"], ["2"])
        server.check()

        (tmp_path / "cut.onnx").write_bytes(b"these are words")
        with (
            asking(server, image) as answers,
            pytest.raises(PublishError, match="version 3 of alexnet does not answer"),
        ):
            publish_seed(2, artefacts={"model.onnx": tmp_path / "cut.onnx"})
        assert changes(answers) == {(new,)}
        assert versions(repository) == [1, 2]

        wrong = {**publication(tmp_path, 2).reference_answer, "probability": 0.0}
        with asking(server, image) as answers, pytest.raises(PublishError, match="for its reference image"):
            publish_seed(2, reference_answer=wrong)
        assert changes(answers) == {(new,)}

        with asking(server, image) as answers:
            assert publish.rollback(repository) == 1
        assert changes(answers) == {(new, old)}
        assert served_version(repository) == 1
    with running_server(repository) as server:
        assert server.control.classify(image)[0] == "1"
