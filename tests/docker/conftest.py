"""Two real Tritons with the tests' small network, and the gateway before them."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from alexnet_triton.serving import Server
from tests.docker.gateway import Gateway, make_secrets
from tests.serving.tiny import build_repository, running_server


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where these Tritons' runs are, apart from all others of this machine."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def tritons(tmp_path_factory: pytest.TempPathFactory, runs_folder: Path) -> Iterator[list[Server]]:
    repository = build_repository(tmp_path_factory.mktemp("behind") / "model_repository")
    logs = [tmp_path_factory.mktemp("log") / "triton.log" for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(tempfile, "tempdir", str(runs_folder))
        servers = [
            stack.enter_context(running_server(repository, cores=2, log=log, start_timeout_s=120)) for log in logs
        ]
        patch.undo()
        yield servers


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_secrets(tmp_path_factory.mktemp("secrets"))


@pytest.fixture
def new_gateway(tritons: list[Server], secrets: Path, tmp_path: Path) -> type[Gateway]:
    """A gateway of a test's own, with its own settings; not started."""

    class Before(Gateway):
        def __init__(self, **settings: object) -> None:
            http = settings.pop("triton_http", None) or [server.http_address for server in tritons]
            grpc = settings.pop("triton_grpc", None) or [server.grpc_address for server in tritons]
            super().__init__(secrets, tmp_path / "access.jsonl", http, grpc, **settings)  # type: ignore[arg-type]

    return Before


@pytest.fixture(scope="session")
def gateway(tritons: list[Server], secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With the settings it has by default."""
    log = tmp_path_factory.mktemp("gateway") / "access.jsonl"
    http, grpc = [server.http_address for server in tritons], [server.grpc_address for server in tritons]
    with Gateway(secrets, log, http, grpc) as running:
        yield running
