"""A real Triton for all tests of the client, and pictures."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedded_triton import Triton


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


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A picture of large random blotches, different for every seed."""
    blotches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seventy different JPEG files."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{seed:03}.jpg" for seed in range(70)]
    for seed, path in enumerate(paths):
        path.write_bytes(jpeg(seed))
    return paths
