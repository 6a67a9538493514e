"""One real run of the main job, with a short training, feeds the tests that need a trained network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from main_job import ROOT, MainJob, make
from serving.server import Server
from training import checkpoint, fashion_mnist
from training.checkpoint import Checkpoint

BUDGET_S = 20  # of training: 0.73 of top-1 where it was measured


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    return fashion_mnist.locate(None, ROOT / "artifacts" / "data" / "fashion-mnist")


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> MainJob:
    artifacts = tmp_path_factory.mktemp("main_job")
    done = make("demo", f"BUDGET={BUDGET_S}", f"DATA={fashion_mnist_folder}", artifacts=artifacts)
    assert done.returncode == 0, done.stderr
    return MainJob(done.stdout, artifacts)


@pytest.fixture(scope="session")
def trained(main_job: MainJob) -> Checkpoint:
    return checkpoint.load(main_job.artifacts / "checkpoint.pt")


@pytest.fixture(scope="session")
def server(main_job: MainJob) -> Iterator[Server]:
    """Triton on what the main job has published."""
    log = main_job.artifacts / "triton.log"
    with Server(main_job.repository, http_port=0, grpc_port=0, metrics_port=0, log=log) as running:
        yield running
