"""Pictures, and a server that answers at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loadtest.stubs import Running, stub
from tests.serving.tiny import jpeg


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
