"""Pictures, and a real Triton on a tiny network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Server
from tests.loadtest.stubs import Running, stub
from tests.serving.tiny import build_repository, jpeg


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twenty different JPEG files."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(20):
        (folder / f"{seed:03}.jpg").write_bytes(jpeg(seed, 64, 48))
    return folder


@pytest.fixture(scope="session")
def quick_stub() -> Iterator[Running]:
    """Answers at once."""
    with stub() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("built") / "model_repository")


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with Server(tiny_repository, http_port=0, grpc_port=0, metrics_port=0, log=log) as server:
        yield server
