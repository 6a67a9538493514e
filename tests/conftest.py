"""One real run of the main job, with a short training, feeds the tests that need a trained network."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.server import Server
from training import checkpoint, fashion_mnist
from training.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 20


@dataclass(frozen=True)
class MainJob:
    """What `make demo` printed, and the folder that it made everything in."""

    output: str
    artifacts: Path

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.artifacts / "pictures").glob("*/*.jpeg"))

    @property
    def repository(self) -> Path:
        return self.artifacts / "model_repository"


def make(*arguments: str, artifacts: Path) -> subprocess.CompletedProcess[str]:
    """Run make as a user does, apart from the make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments, f"ARTIFACTS={artifacts}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


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
