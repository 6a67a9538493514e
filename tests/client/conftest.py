"""A real Triton for all tests of the client, and pictures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton import Triton
from photographs import jpeg


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Serves the tests' repository while the tests run."""
    server = Triton(tmp_path_factory.mktemp("triton"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, triton: Triton) -> str:
    """The server's address, over each protocol in turn."""
    return triton.urls[request.param]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seventy different JPEG files."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{seed:03}.jpg" for seed in range(70)]
    for seed, path in enumerate(paths):
        path.write_bytes(jpeg(seed))
    return paths
