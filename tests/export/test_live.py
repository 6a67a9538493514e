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

from export import publish, to_onnx
from export.errors import PublishError
from export.repository import served_version, versions, write_version
from main_job import MainJob
from serving.server import Server
from training.checkpoint import Checkpoint

CLIENTS = 32


@pytest.fixture(scope="module")
def other_model(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with its classes' weights in another order: it answers otherwise, and as surely."""
    weights = {name: tensor.clone() for name, tensor in trained.weights.items()}
    for name in ("classifier.6.weight", "classifier.6.bias"):
        weights[name] = weights[name].flip(0)
    path = tmp_path_factory.mktemp("other") / "model.onnx"
    to_onnx.save(to_onnx.export(replace(trained, weights=weights), "other"), path)
    return path


Answer = tuple[str, int]  # version, class


@contextmanager
def asking(server: Server, image: bytes) -> Iterator[list[list[Answer]]]:
    """32 clients, one request after another each; any failed request fails the test.

    Yields the answers of each client. Ends when each has had another answer after the block.
    """
    answers: list[list[Answer]] = [[] for _ in range(CLIENTS)]
    stop = threading.Event()

    def ask(client: tritonclient.grpc.InferenceServerClient, own: list[Answer]) -> None:
        tensor = tritonclient.grpc.InferInput("encoded", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        last = False
        while not last:
            last = stop.is_set()
            result = client.infer("classify", [tensor], client_timeout=60)
            own.append((result.get_response().model_version, int(result.as_numpy("probabilities").argmax())))

    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, client, own) for own in answers]
        try:
            yield answers
        finally:
            stop.set()
        for each in clients:
            each.result()


def changes(answers: list[list[Answer]]) -> set[tuple[Answer, ...]]:
    """What each client saw, one entry for every change of answer."""
    return {tuple(answer for answer, _ in itertools.groupby(own)) for own in answers}


def test_publish_rollback_and_a_broken_publication_under_load(
    main_job: MainJob, other_model: Path, tmp_path: Path
) -> None:
    first, pictures = main_job.artifacts / "onnx" / "model.onnx", main_job.artifacts / "pictures"
    repository = tmp_path / "model_repository"
    assert publish.publish(first, pictures, repository) == 1
    image = (repository / "classify" / "1" / "known.jpg").read_bytes()
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        with asking(server, image) as answers:
            assert publish.publish(other_model, pictures, repository) == 2
        ((old, new),) = changes(answers)
        assert (old[0], new[0]) == ("1", "2")
        assert new[1] == 9 - old[1]

        with asking(server, image) as answers:
            broken = publish.prepare(first, pictures, "alexnet", force=False)
            (tmp_path / "cut.onnx").write_bytes(first.read_bytes()[:1000])
            version = write_version(repository, replace(broken, artefacts={"model.onnx": tmp_path / "cut.onnx"}))
            with pytest.raises(PublishError, match="version 3 of alexnet does not answer"):
                publish.serve_version(repository, version, new=True)
        assert changes(answers) == {(new,)}
        assert versions(repository) == [1, 2]

        with asking(server, image) as answers:
            liar = publish.prepare(first, pictures, "alexnet", force=False)
            wrong = {**liar.known_answer, "index": (liar.known_answer["index"] + 1) % 10}
            version = write_version(repository, replace(liar, known_answer=wrong))
            with pytest.raises(PublishError, match="for its known image"):
                publish.serve_version(repository, version, new=True)
        assert changes(answers) == {(new,)}

        with asking(server, image) as answers:
            assert publish.rollback(repository) == 1
        assert changes(answers) == {(new, old)}
        assert served_version(repository) == 1
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        assert server.control.classify(image)[0] == "1"
