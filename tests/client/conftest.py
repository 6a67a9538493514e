"""Two real Tritons for all tests of the client, one of them to be killed, and pictures."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton import REPOSITORY, Triton
from photographs import jpeg

ADDER = """
backend: "python"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
"""
SLOW = (
    ("count: 1", "count: 2"),  # with one, a bounded queue or one of priorities waits half a second now and then
    ("max_batch_size: 64", "max_batch_size: 1"),
    ("dynamic_batching { }", "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"),
)
CLOSED_INDEX = "--grpc-restricted-protocol=model-repository:key=value"


@pytest.fixture(scope="session")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Serves the tests' repository, with a model of another kind and a slow one; over gRPC its index is closed."""
    folder = tmp_path_factory.mktemp("triton")
    with Triton(folder, make_zoo(folder / "repository"), (CLOSED_INDEX,)) as server:
        yield server


def make_zoo(folder: Path) -> Path:
    """The tests' repository with `adder`, which takes no images, and `slow`, which has priorities."""
    repository = shutil.copytree(REPOSITORY, folder)
    for file in repository.glob("*/1/model.py"):
        file.write_text(file.read_text().replace("Path(__file__).parents[3]", repr(str(REPOSITORY.parent))))
    (repository / "adder/1").mkdir(parents=True)
    (repository / "adder/config.pbtxt").write_text(ADDER)
    shutil.copy(repository / "alexnet/1/model.py", repository / "adder/1/model.py")
    shutil.copytree(repository / "classify", repository / "slow")
    edit(repository / "slow/config.pbtxt", *SLOW)
    sleep = ("        return [", "        __import__('time').sleep(0.05)\n        return [")
    edit(repository / "slow/1/model.py", sleep)
    return repository


def edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture
def triton(shared_triton: Triton) -> Iterator[Triton]:
    """The shared server, alive; the test that it does not survive fails, and the next has it anew."""
    if not shared_triton.alive():
        shared_triton.start()
    yield shared_triton
    assert shared_triton.alive(), f"the server did not survive this test: {shared_triton.log.read_text()[-3000:]}"


@pytest.fixture(scope="session")
def mortal_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server that tests kill and freeze."""
    with Triton(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture
def own(mortal_triton: Triton) -> Iterator[Triton]:
    """A running server that the test may kill and freeze."""
    if not mortal_triton.alive():
        mortal_triton.start()
    yield mortal_triton
    if mortal_triton.process is not None and mortal_triton.process.poll() is None:
        mortal_triton.thaw()


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
