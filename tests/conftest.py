"""One real run of the main job, with a short training, feeds the tests that need a trained network.

The tests run in several processes: the first that needs the run makes it, the others wait for it.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright

from alexnet_triton.serving.plan_engine import has_gpu
from alexnet_triton.serving.server import Server
from alexnet_triton.training import checkpoint, fashion_mnist
from alexnet_triton.training.checkpoint import Checkpoint
from main_job import ROOT, MainJob, make
from tests.serving.tiny import build_repository, running_server
from tests.tools import CHROMIUM, find

BUDGET_S = 12  # of training; other tests share the cores with it, and a slow machine learns little in half of that
WIDTH = 0.125  # of the network: a thirtieth of the work, with nothing left out
MEANWHILE = 8  # files of tests, which last about as long as the main job
COMPUTING = ("bulk", "export", "training")  # folders whose tests compute; most of the others' wait for servers


def pytest_configure() -> None:
    # The tests start hundreds of processes: each is to find the modules compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # As the Makefile: threads of PyTorch that wait sleep, NumPy has none, here and in all that the tests start.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that makes the main job starts first, some others beside it, then those that need it: they are long.

    Files that compute lie between files that wait, so that the cores have work at every time.
    """
    makes = ROOT / "tests" / "test_main_job.py"
    needs = {item.path for item in items if "main_job" in getattr(item, "fixturenames", ())}
    files = mixed(list(dict.fromkeys(item.path for item in items)))
    others = [path for path in files if path not in needs]
    order = [makes, *others[:MEANWHILE], *(path for path in files if path in needs - {makes}), *others[MEANWHILE:]]
    items.sort(key=lambda item: order.index(item.path))
    for_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpus and not has_gpu():
        for item in for_gpus:
            item.add_marker(pytest.mark.skip(reason="not run: no GPU"))


def mixed(files: list[Path]) -> list[Path]:
    """The same files, those of `COMPUTING` spread evenly among the others."""
    computing = [path for path in files if path.parent.name in COMPUTING]
    waiting = [path for path in files if path not in computing]
    places = {path: (index + 0.5) / len(kind) for kind in (computing, waiting) for index, path in enumerate(kind)}
    return sorted(files, key=places.__getitem__)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """What runs in a shell's background ignores SIGINT, under nohup SIGHUP, and so does all that it starts, where a
    shell cannot even trap it: a handler here undoes that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all processes of this run of the tests."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def fashion_mnist_folder(shared_folder: Path) -> Path:
    with FileLock(shared_folder / "fashion_mnist.lock"):
        return fashion_mnist.locate(None, ROOT / "artifacts" / "data" / "fashion-mnist")


@pytest.fixture(scope="session")
def main_job(shared_folder: Path, fashion_mnist_folder: Path) -> MainJob:
    artifacts = shared_folder / "main_job"
    output = artifacts / "output.txt"
    with FileLock(shared_folder / "main_job.lock"):
        if not output.exists():
            how = (f"BUDGET={BUDGET_S}", f"WIDTH={WIDTH}", f"DATA={fashion_mnist_folder}")
            done = make("demo", *how, artifacts=artifacts)
            assert done.returncode == 0, done.stderr
            output.write_text(done.stdout)
    return MainJob(output.read_text(), artifacts)


@pytest.fixture(scope="session")
def trained(main_job: MainJob) -> Checkpoint:
    return checkpoint.load(main_job.artifacts / "checkpoint.pt")


@pytest.fixture(scope="session")
def server(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Triton on what the main job has published."""
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with running_server(main_job.repository, cores=2, log=log) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("built") / "model_repository")


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with running_server(tiny_repository, cores=2, log=log) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium: the system's, or where there is none Playwright's."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox refuses to run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=find(CHROMIUM), args=arguments)
        yield opened
        opened.close()
