"""Several publishers of one repository, several servers on it, and publications that are killed or fail."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from alexnet_triton.export import publish, rollout
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.repository import stage, versions
from alexnet_triton.serving.errors import RepositoryError
from alexnet_triton.serving.repository import PARKED, locked, served_version
from alexnet_triton.serving.runs import SERVERS, find_servers
from alexnet_triton.serving.server import Server
from main_job import ROOT
from tests.serving.tiny import LABELS, jpeg, network, publication, running_server
from tests.waiting import wait_for


def write_model(folder: Path, seed: int = 0) -> Path:
    """The small network as a file that `publish` takes."""
    model = network(seed)
    onnx.helper.set_model_props(model, {"classes": json.dumps(LABELS)})
    path = folder / str(seed) / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path)
    return path


@contextmanager
def server_of_another_container(repository: Path, folder: Path) -> Iterator[Server]:
    """A server whose run this program does not see, because its temporary folder is another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        server = Server(repository, http_port=0, grpc_port=0, metrics_port=0)
        server.start()
    try:
        yield server
    finally:
        server.stop()


def answering(server: Server) -> str:
    return server.control.classify(jpeg(1))[0]


def test_publishers_go_one_after_another_and_each_version_is_its_own(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    models = [write_model(tmp_path, seed) for seed in (1, 2, 3)]
    with running_server(repository) as server, ThreadPoolExecutor(3) as pool:
        published = list(pool.map(lambda model: publish.publish(model, None, repository), models))
        assert sorted(published) == [2, 3, 4]
        assert answering(server) == "4"
        server.check()
    assert (served_version(repository), versions(repository)) == (4, [3, 4])
    own = models[published.index(4)]
    assert (repository / "alexnet/4/model.onnx").read_bytes() == own.read_bytes()


def test_one_that_fails_takes_nobody_else_s_version_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first is at work, and the server refuses the second's version."""
    repository, begun = tmp_path / "built", threading.Event()
    publish.publish(write_model(tmp_path, 0), None, repository)
    load_beside = rollout._load_beside

    def load_or_fail(servers: object, where: Path, version: int) -> None:
        begun.set()
        if version > 2:
            raise PublishError("refused by the server")
        load_beside(servers, where, version)  # type: ignore[arg-type]

    monkeypatch.setattr(rollout, "_load_beside", load_or_fail)
    with running_server(repository) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(publish.publish, write_model(tmp_path, 1), None, repository)
        assert begun.wait(30)
        with pytest.raises(PublishError, match="refused by the server"):
            publish.publish(write_model(tmp_path, 2), None, repository)
        assert first.result() == 2
        assert answering(server) == "2"
    assert (served_version(repository), versions(repository)) == (2, [1, 2])


def test_who_waits_says_for_whom(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    words = [
        sys.executable,
        "-m",
        "alexnet_triton",
        "publish",
        str(write_model(tmp_path, 1)),
        "--repository",
        repository,
    ]
    with locked(repository, "alexnet-triton publish"):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        said = process.stderr.readline()
        assert versions(repository) == [1]
    printed, more = process.communicate(timeout=60)
    holder = f"alexnet-triton publish, process {os.getpid()}"
    assert said == f"alexnet-triton publish: waits for {holder}, which has the lock of {repository}\n"
    assert (process.returncode, printed, more) == (0, f"version 2 in {repository}\n", "")


def test_waiting_ends(tmp_path: Path) -> None:
    with (
        locked(tmp_path, "alexnet-triton rollback"),
        pytest.raises(RepositoryError, match=r"rollback, process \d+, has held its lock for 0.2 s: wait until"),
        locked(tmp_path, "alexnet-triton publish", timeout_s=0.2),
    ):
        pass


def test_a_server_starts_although_a_publication_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    monkeypatch.setattr("alexnet_triton.serving.server.LOCK_WAIT_S", 0.2)
    with locked(repository, "alexnet-triton publish"), running_server(repository) as server:
        server.check()


def test_every_server_on_the_repository_gets_the_version(tmp_path: Path) -> None:
    repository, link = tmp_path / "built", tmp_path / "link"
    publish.publish(write_model(tmp_path, 0), None, repository)
    link.symlink_to(repository)
    with running_server(link) as by_link, server_of_another_container(repository, tmp_path) as elsewhere:
        assert publish.publish(write_model(tmp_path, 1), None, repository) == 2
        assert (answering(by_link), answering(elsewhere)) == ("2", "2")
        assert publish.rollback(link) == (3, 1)
        assert (answering(by_link), answering(elsewhere)) == ("3", "3")


def test_a_server_watches_the_network_that_is_published_in_place(tmp_path: Path) -> None:
    """Under another name, it is another model than the one that the server was started with."""
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    with running_server(repository) as server:
        publish.publish(write_model(tmp_path, 1), None, repository, name="other")
        assert server.check_health(timeout_s=5.0, patience_s=1.0)
        os.kill(next(pid for pid, stub in server._live_stubs().items() if stub.model == "other"), 9)
        wait_for(lambda: server.missing_stubs() == ["other"])
        server.heal("other", timeout_s=10.0)
        assert answering(server) == "2"
        assert not server.missing_stubs()


def test_when_one_server_cannot_have_it_none_keeps_it(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    with running_server(repository) as first, server_of_another_container(repository, tmp_path) as second:
        answer_with = rollout._answer_with
        moved = []

        def answer_or_die(server: rollout.FoundServer, where: Path, version: int) -> None:
            if version == 2 and moved:  # one answers with it already
                os.kill(second.pid if server.name in second.log_path.parts else first.pid, 9)
            moved.append(server.name)
            answer_with(server, where, version)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollout, "_answer_with", answer_or_die)
            with pytest.raises(
                PublishError, match=r"does not answer with version 2.*not back at version 1: \w+; restart"
            ):
                publish.publish(write_model(tmp_path, 1), None, repository)
        alive = second if moved[0] in second.log_path.parts else first
        assert answering(alive) == "1"
        alive.check()
    assert (served_version(repository), versions(repository)) == (1, [1])


def test_a_server_announces_itself_to_its_user_alone(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    with running_server(repository) as server:
        (path,) = (repository / SERVERS).iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        stale = shutil.copy(path, path.with_name("stale.json"))  # what a server that was killed leaves
        assert [found.control for found in find_servers(repository)] == [server.control]
        assert not Path(stale).exists()
    assert not list((repository / SERVERS).iterdir())


def test_where_it_cannot_announce_itself_it_serves(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    (repository / SERVERS).write_text("no folder")
    with running_server(repository) as server:
        server.check()
        assert [found.control for found in find_servers(repository)] == [server.control]


def test_a_version_is_tried_before_anything_of_it_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, seen = tmp_path / "built", []
    publish.publish(write_model(tmp_path, 0), None, repository)
    before = sorted(repository.rglob("*"))

    def smoke_test(staging: Path, what: object) -> None:
        seen.extend(path for path in sorted(repository.rglob("*")) if not path.is_relative_to(staging))
        raise PublishError("it does not run")

    monkeypatch.setattr(publish, "smoke_test", smoke_test)
    with pytest.raises(PublishError, match="it does not run"):
        publish.publish(write_model(tmp_path, 1), None, repository)
    assert seen == sorted(repository.rglob("*")) == before


def test_what_a_killed_publication_left_is_removed(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish.publish(write_model(tmp_path, 0), None, repository)
    (repository / ".staging.dead").mkdir()
    orphan = repository / PARKED / "alexnet" / "7"
    orphan.mkdir(parents=True)
    with stage(repository, publication(tmp_path, 5)) as alive:  # another publisher's, at work
        assert publish.publish(write_model(tmp_path, 1), None, repository) == 2
        assert alive.is_dir()
    assert not list(repository.glob(".staging*"))
    assert not orphan.exists()


def test_files_are_on_the_disk_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, synced, unsynced = tmp_path / "built", set[int](), list[Path]()
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checking_replace(self: Path, target: Path) -> Path:
        if not self.name.startswith(".manifest") and not self.name.startswith(".reference"):  # in the staging folder
            files = [path for path in (self, *self.rglob("*")) if path.is_file()]
            unsynced.extend(path for path in files if path.stat().st_ino not in synced)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", checking_replace)
    publish.publish(write_model(tmp_path, 0), None, repository)
    assert unsynced == []
