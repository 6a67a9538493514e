"""Publishing, rolling back and failing to publish while 32 clients ask without pause."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from alexnet_triton.export import publish
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.repository import set_served_version, versions
from alexnet_triton.export.rollout import serve_version
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.repository import served_version
from alexnet_triton.serving.server import Server
from tests.serving.tiny import LABELS, answer, network, publication, running_server, write_version
from tests.serving.tiny import publish as publish_tiny
from tests.waiting import wait_for

CLIENTS = 32


Answer = tuple[str, int]  # version, class


@contextmanager
def ask_over_grpc(server: Server, image: bytes) -> Iterator[Callable[[], Answer]]:
    """Asks for probabilities."""
    tensor = tritonclient.grpc.InferInput("encoded", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], np.object_))
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:

        def ask() -> Answer:
            result = client.infer("classify", [tensor], client_timeout=60)
            return result.get_response().model_version, int(result.as_numpy("probabilities").argmax())

        yield ask


@contextmanager
def ask_for_labels(server: Server, image: bytes) -> Iterator[Callable[[], Answer]]:
    """Asks for labels over HTTP: Triton makes them when the probabilities are there."""
    tensor = tritonclient.http.InferInput("encoded", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], np.object_))
    output = tritonclient.http.InferRequestedOutput("probabilities", class_count=1)
    with tritonclient.http.InferenceServerClient(server.http_address, network_timeout=60) as client:

        def ask() -> Answer:
            result = client.infer("classify", [tensor], outputs=[output])
            label = result.as_numpy("probabilities").ravel()[0].decode().split(":", 2)[2]
            return result.get_response()["model_version"], LABELS.index(label)

        yield ask


@contextmanager
def asking(server: Server, image: bytes) -> Iterator[list[list[Answer]]]:
    """32 clients over both protocols, one request after another each; any failed request fails the test.

    Yields the answers of each client, once each has had one. Ends when each has had another after the block.
    """
    answers: list[list[Answer]] = [[] for _ in range(CLIENTS)]
    started, stop = threading.Barrier(CLIENTS + 1, timeout=60), threading.Event()

    def ask(way: Callable[[Server, bytes], AbstractContextManager[Callable[[], Answer]]], own: list[Answer]) -> None:
        with way(server, image) as asked:
            last = False
            while not last:
                last = stop.is_set()
                own.append(asked())
                if len(own) == 1:
                    started.wait()

    with ThreadPoolExecutor(CLIENTS) as pool:
        ways = itertools.cycle((ask_over_grpc, ask_for_labels))
        clients = [pool.submit(ask, way, own) for way, own in zip(ways, answers, strict=False)]
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
        serve_version(repository, version, new=True)

    publish_seed(0)
    image = (repository / "classify" / "1" / "reference.0.jpg").read_bytes()
    with running_server(repository) as server:
        with asking(server, image) as answers:
            publish_seed(1)
        ((old, new),) = changes(answers)
        expected = [int(answer(network(seed), image).argmax()) for seed in (0, 1)]
        assert (old, new) == (("1", expected[0]), ("2", expected[1]))
        assert new[1] != old[1]
        assert (server.control.versions("alexnet"), server.control.versions("classify")) == (["2"], ["2"])
        server.check()

        (tmp_path / "cut.onnx").write_bytes(b"these are words")
        with (
            asking(server, image) as answers,
            pytest.raises(PublishError, match="version 3 of alexnet does not answer"),
        ):
            publish_seed(2, artefacts={"model.onnx": tmp_path / "cut.onnx"})
        assert changes(answers) == {(new,)}
        assert versions(repository) == [1, 2]

        wrong = publication(tmp_path, 2).references
        wrong[-1].probabilities[0] += 0.1
        with asking(server, image) as answers, pytest.raises(PublishError, match="for its reference image"):
            publish_seed(2, references=wrong)
        assert changes(answers) == {(new,)}

        with asking(server, image) as answers:
            assert publish.rollback(repository) == (3, 1)
        assert changes(answers) == {(new, ("3", old[1]))}
        assert (server.control.versions("alexnet"), server.control.versions("classify")) == (["3"], ["3"])
    assert (served_version(repository), versions(repository)) == (3, [2, 3])
    with running_server(repository) as server:
        assert server.control.classify(image)[0] == "3"
        assert publish.rollback(repository) == (4, 2)


def stubs(server: Server, model: str) -> dict[int, str]:
    """Process id -> version, of a model's live stubs."""
    found = {}
    for pid in server.stubs():
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parts = Path(os.fsdecode(words[1])).parts if len(words) > 1 else ()  # a process that ends has no words
            if parts[-3:-2] == (model,):
                found[pid] = parts[-2]
    return found


def test_only_the_served_version_is_loaded_and_switching_touches_nothing_else(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    publish_tiny(repository, publication(tmp_path, 0))
    with running_server(repository) as server:
        decoders, during = stubs(server, "preprocess"), {}

        def change_to(change: Callable[[], object], version: str) -> None:
            wait_for(lambda: set(stubs(server, "alexnet").values()) != {version})
            change()
            wait_for(lambda: set(stubs(server, "alexnet").values()) == {version})
            assert server.control.versions("alexnet") == server.control.versions("classify") == [version]
            assert stubs(server, "preprocess") == decoders
            server.check()

        def publish_second() -> None:
            second = write_version(repository, publication(tmp_path, 1))
            load = Control.load

            def watching(self: Control, model: str, timeout_s: float = 60.0) -> None:
                load(self, model, timeout_s)
                if model == "classify":
                    during.update(stubs(server, "alexnet"))

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Control, "load", watching)
                serve_version(repository, second, new=True)

        change_to(publish_second, "2")
        assert set(during.values()) == {"1", "2"}
        # Those that answer now are those that were asked before the callers came: none was started again.
        assert stubs(server, "alexnet").items() <= during.items()
        change_to(lambda: publish.rollback(repository), "3")


def test_a_version_before_that_no_longer_loads_does_not_stop_the_server(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    for seed in (0, 1):
        publish_tiny(repository, publication(tmp_path, seed))
    for path in repository.rglob("1/model.onnx"):  # as a plan of another GPU
        path.write_bytes(b"not for this machine")
    with running_server(repository) as server:
        server.check()
        with pytest.raises(PublishError, match="version 3 of alexnet does not answer"):
            publish.rollback(repository)
        server.check()
        assert server.control.versions("alexnet") == ["2"]
    assert versions(repository) == [1, 2]


@pytest.mark.parametrize(("answers_with", "before"), [(1, None), (2, None), (2, 1)])
def test_a_server_ends_the_switch_that_a_killed_publication_left(
    tmp_path: Path, answers_with: int, before: int | None
) -> None:
    repository = tmp_path / "model_repository"
    for seed in (0, 1):
        publish_tiny(repository, publication(tmp_path, seed))
    set_served_version(repository, 1)
    set_served_version(repository, answers_with, before)
    assert {path.name for path in (repository / "alexnet").glob("[0-9]*")} == {"1", "2"}
    with running_server(repository) as server:
        assert server.control.versions("alexnet") == server.control.versions("classify") == [str(answers_with)]


def test_another_network_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    publish_tiny(repository, publication(tmp_path, 0))
    with running_server(repository) as server:
        other = write_version(repository, publication(tmp_path, 1, name="other"))
        serve_version(repository, other, new=True)
        wait_for(lambda: server.control.loaded() == ["classify", "other", "preprocess"])
        assert publish.rollback(repository) == (3, 1)
        wait_for(lambda: server.control.loaded() == ["alexnet", "classify", "preprocess"])
        server.check()
        wrong = publication(tmp_path, 1, name="third").references
        wrong[0].probabilities[0] += 0.1
        third = write_version(repository, replace(publication(tmp_path, 1, name="third"), references=wrong))
        with pytest.raises(PublishError, match="for its reference image"):
            serve_version(repository, third, new=True)
        wait_for(lambda: server.control.loaded() == ["alexnet", "classify", "preprocess"])
        assert not (repository / "third").exists()
