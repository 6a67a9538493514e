"""What a benchmark is told, and what can go wrong in it."""

import os
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.common.command import UserError

ROOT = Path(__file__).resolve().parents[2]
OURS, OURS_GRPC, BOUND = "this server, HTTP", "this server, gRPC", "bound, no server"
CORES = os.cpu_count() or 1
BATCH = 16  # of every server here, so that none is better off


@dataclass(frozen=True)
class BenchConfig:
    """How long, how often, and on what."""

    repository: Path
    folder: Path  # results, charts and working files
    images: Path | None = None
    pictures: Path = Path("artifacts/pictures")
    peers_python: Path = Path(".venv-bench/bin/python")
    targets: tuple[str, ...] = ()
    connections: tuple[int, ...] = (1, 16, 64, 256)
    seconds: float = 6.0  # a measurement
    warm_up_s: float = 2.0
    repeats: int = 3
    overload_s: float = 60.0
    soak_s: float = 600.0
    kills: int = 10
    client_images: int = 10_000

    @property
    def network(self) -> Path:
        """The version folder of `alexnet` that is published last: the engine file that every target shares."""
        versions = [path for path in (self.repository / "alexnet").iterdir() if path.name.isdecimal()]
        return max(versions, key=lambda path: int(path.name)).absolute()

    @property
    def bodies(self) -> Path:
        """The JPEGs that are sent: 000.jpg to 099.jpg."""
        return (self.folder / "images").absolute()


class BenchError(UserError):
    """A tool, a picture or a server that a stage needs is not there, or does not work."""
