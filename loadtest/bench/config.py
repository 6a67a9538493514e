"""The settings of a benchmark run, its error, and what every measured server has in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.common.command import UserError
from alexnet_triton.common.provenance import usable_cores

ROOT = Path(__file__).resolve().parents[2]
OURS, OURS_GRPC, BOUND = "this server, HTTP", "this server, gRPC", "bound, no server"
CORES = usable_cores()
BATCH = 16  # the largest batch of every server, so that none is better off
Advance = Callable[[str], None]  # tells the person who waits which step begins


class BenchError(UserError):
    """A tool, images or a server that a stage needs are missing or do not work."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, for how long and how often.

    Attributes:
        folder: results, charts, logs and working files.
        images: photographs to send; without them the demo's `pictures` are enlarged.
        seconds: of one measurement.
        repeats: rounds; the targets take turns in each.
        rate_per_s: of the callers that are measured beside slow ones (gateway-slow).
    """

    repository: Path
    folder: Path
    images: Path | None = None
    pictures: Path = Path("artifacts/pictures")
    peers_python: Path = Path(".venv-bench/bin/python")
    targets: tuple[str, ...] = ()
    connections: tuple[int, ...] = (1, 16, 64, 256)
    seconds: float = 6.0
    warm_up_s: float = 2.0
    repeats: int = 3
    overload_s: float = 60.0
    soak_s: float = 600.0
    kills: int = 10
    client_images: int = 10_000
    rate_per_s: float = 50.0

    @property
    def network(self) -> Path:
        """The newest version folder of `alexnet`: every target runs the engine file in it."""
        versions = [path for path in (self.repository / "alexnet").iterdir() if path.name.isdecimal()]
        return max(versions, key=lambda path: int(path.name)).absolute()

    @property
    def bodies(self) -> Path:
        """The folder of the JPEGs that are sent: 000.jpg to 099.jpg."""
        return (self.folder / "images").absolute()
