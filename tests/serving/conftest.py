from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Server
from tests.serving.tiny import build_repository


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("built") / "model_repository")


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with Server(tiny_repository, http_port=0, grpc_port=0, metrics_port=0, log=log) as server:
        yield server
