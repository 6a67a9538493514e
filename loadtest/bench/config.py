"""A benchmark run's settings, error and images, and what every measured server has in common."""

import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.common.command import UserError
from alexnet_triton.common.files import JPEG_SUFFIXES
from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.serving.repository import Repository

ROOT = Path(__file__).resolve().parents[2]
OURS, OURS_GRPC, BOUND = "this server, HTTP", "this server, gRPC", "bound, no server"
IMAGES = 100  # different ones, sent in turn
ENLARGED = (500, 375)  # the median of ImageNet
QUALITY = 90
Advance = Callable[[str], None]  # tells the person who waits which step begins


class BenchError(UserError):
    """A tool, images or a server that a stage needs are missing or do not work. Every stage raises it."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, for how long and how often.

    Attributes:
        folder: results, charts, logs and working files.
        variant: of the repository's configurations, as `alexnet-triton serve` takes it.
        images: photographs to send; without them the demo's `pictures` are enlarged.
        seconds: of one measurement.
        repeats: rounds; the targets take turns in each.
        peers: of tune: the servers whose settings are looked for in place of this one's.
        apart: of overload: the load generator has a core of its own, as where callers have machines of their own.
    """

    repository: Path
    folder: Path
    images: Path | None = None
    pictures: Path = Path("artifacts/pictures")
    peers_python: Path = Path(".venv-bench/bin/python")
    targets: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    connections: tuple[int, ...] = (1, 16, 64, 256)
    seconds: float = 6.0
    warm_up_s: float = 2.0
    repeats: int = 3
    overload_s: float = 60.0
    apart: bool = False
    client_images: int = 10_000
    profile_connections: int = 64
    variant: str = "cpu"

    @property
    def network_config(self) -> ModelConfig:
        """The configuration of the network that `classify` asks."""
        return Repository.open(self.repository, self.variant).by_source_name["alexnet"]

    @property
    def on_gpu(self) -> bool:
        """Whether the variant's network runs on a GPU."""
        return self.variant.startswith("gpu")

    @property
    def engine(self) -> str:
        """What runs the network without a server: a plan on a GPU, and else OpenVINO."""
        return "tensorrt" if self.on_gpu else "openvino"

    @property
    def network(self) -> Path:
        """The newest version folder of the network: every target runs the engine file in it."""
        versions = [path for path in (self.repository / self.network_config.name).iterdir() if path.name.isdecimal()]
        return max(versions, key=lambda path: int(path.name)).absolute()

    @property
    def bodies(self) -> Path:
        """The folder of the JPEGs that are sent: 000.jpg to 099.jpg."""
        return (self.folder / "images").absolute()

    def load_images(self) -> list[bytes]:
        """The JPEGs that are sent, in order."""
        return [path.read_bytes() for path in sorted(self.bodies.glob("*.jpg"))]


def prepare_images(config: BenchConfig) -> str:
    """Fill `config.bodies` with a hundred different JPEGs; returns what they are, in words.

    Raises:
        BenchError: there are too few.
    """
    sources = _choose(config.images or config.pictures)
    shutil.rmtree(config.bodies, ignore_errors=True)
    config.bodies.mkdir(parents=True)
    for number, source in enumerate(sources):
        body = source.read_bytes() if config.images else _enlarge(source)
        (config.bodies / f"{number:03}.jpg").write_bytes(body)
    kind = f"photographs of {config.images.name}" if config.images else f"pictures of the demo, enlarged to {ENLARGED}"
    return f"{IMAGES} {kind}, {sum(map(len, config.load_images())) / IMAGES / 1e3:.0f} kB on average"


def _choose(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in JPEG_SUFFIXES)
    if len(found) < IMAGES:
        raise BenchError(f"{len(found)} JPEGs in {folder}, and {IMAGES} are needed: name a folder with --images")
    return found[:: len(found) // IMAGES][:IMAGES]


def _enlarge(source: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(source) as image:
        _save(image, ENLARGED, buffer)
    return buffer.getvalue()


def _save(image: Image.Image, size: tuple[int, int], target: Path | io.BytesIO) -> None:
    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, "JPEG", quality=QUALITY)


def resized_images(config: BenchConfig, megapixels: float, advance: Advance) -> Path:
    """A folder of the images that are sent with so many megapixels each, made by all cores."""
    folder = (config.folder / f"images-{megapixels:g}-megapixels").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    advance(f"images of {megapixels:g} megapixels")
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(partial(_resize, folder, megapixels), sorted(config.bodies.glob("*.jpg"))))
    return folder


def _resize(folder: Path, megapixels: float, source: Path) -> None:
    with Image.open(source) as image:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        _save(image, size, folder / source.name)


def describe_images(folder: Path) -> dict[str, float]:
    """Megapixels and megabytes of an image, means over a folder's."""
    files = sorted(folder.glob("*.jpg"))
    pixels, size = 0, sum(path.stat().st_size for path in files)
    for path in files:
        with Image.open(path) as image:
            pixels += image.width * image.height
    return {"megapixels": pixels / len(files) / 1e6, "megabytes": size / len(files) / 1e6}
