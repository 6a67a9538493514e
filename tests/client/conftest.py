"""A real Triton for all tests of the client, and pictures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton import Triton
from photographs import jpeg


@pytest.fixture(scope="session")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Serves the tests' repository while the tests of this process run."""
    with Triton(tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture
def triton(shared_triton: Triton) -> Iterator[Triton]:
    """The shared server, alive; the test that it does not survive fails, and the next has it anew."""
    if not shared_triton.alive():
        shared_triton.start()
    yield shared_triton
    assert shared_triton.alive(), f"the server did not survive this test: {shared_triton.log.read_text()[-3000:]}"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Triton]:
    """A server of the test's own, to be killed and frozen; it runs."""
    with Triton(tmp_path) as server:
        server.start()
        yield server


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
