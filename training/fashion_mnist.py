"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747), found or fetched, and checked byte for byte."""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from alexnet_triton.training.errors import DataError

CLASSES = (
    *("T-shirt or top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Length in bytes and SHA-256 of the unpacked files. Archives of the same files differ from packer to packer.
FILES = {
    "train-images-idx3-ubyte": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
PREFIXES = {"train": "train", "test": "t10k"}
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
ARCHIVE_BYTES = 64 * 2**20
TIMEOUT_S = 120


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read `train` (60,000) or `test` (10,000): images uint8 [N, 28, 28], labels int64 [N].

    Raises:
        DataError: a file is missing or is not Fashion-MNIST's.
    """
    images = _read(folder, f"{PREFIXES[split]}-images-idx3-ubyte")
    labels = _read(folder, f"{PREFIXES[split]}-labels-idx1-ubyte")
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64),
    )


def locate(folder: Path | None, fetched: Path) -> Path:
    """A folder with the four checked archives: `folder` if one is given, else one that is found or fetched.

    The order is: the system's folder, `fetched` from an earlier run, Debian's package (unpacked, not installed),
    the data set's own address.

    Raises:
        DataError: none of them worked; the message lists them.
    """
    existing = folder or next(filter(Path.is_dir, (SYSTEM_FOLDER, fetched)), None)
    if existing is None:
        return _fetch(fetched)
    _check(existing)
    return existing


def _fetch(fetched: Path) -> Path:
    fetched.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for name, fetch in ((f"Debian's package {DEBIAN_PACKAGE}", _from_debian), (ADDRESS, _from_address)):
        with tempfile.TemporaryDirectory(dir=fetched.parent) as temporary:
            target = Path(temporary, "files")
            target.mkdir()
            try:
                fetch(target)
                _check(target)
            except (OSError, subprocess.SubprocessError, DataError) as error:
                failures.append(f"{name} ({_reason(error)})")
                continue
            target.replace(fetched)
            return fetched
    raise DataError(
        f"Fashion-MNIST not found; tried {SYSTEM_FOLDER}, {', '.join(failures)}. "
        f"Put {', '.join(f'{name}.gz' for name in FILES)} into a folder and give it as DATA=folder"
    )


def _from_debian(target: Path) -> None:
    """Unpack Debian's package without installing it, which needs no root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise FileNotFoundError("no apt-get and dpkg-deb on this machine")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _run(["apt-get", "download", "-qq", DEBIAN_PACKAGE], folder)
        (package,) = Path(folder).glob("*.deb")
        _run(["dpkg-deb", "--extract", package.name, "."], folder)
        for name in FILES:
            shutil.move(Path(folder, *SYSTEM_FOLDER.parts[1:], f"{name}.gz"), target)


def _run(command: list[str], folder: str) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=TIMEOUT_S)


def _from_address(target: Path) -> None:
    for name in FILES:
        with urllib.request.urlopen(f"{ADDRESS}/{name}.gz", timeout=TIMEOUT_S) as response:
            (target / f"{name}.gz").write_bytes(response.read(ARCHIVE_BYTES))


def _check(folder: Path) -> None:
    for name in FILES:
        _read(folder, name)


def _read(folder: Path, name: str) -> bytes:
    """The unpacked content of one archive. Reads one byte more than the known length at most."""
    path = folder / f"{name}.gz"
    length, sha256 = FILES[name]
    try:
        with gzip.open(path) as file:
            content = file.read(length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); replace it or give another folder") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: not Fashion-MNIST's file (the SHA-256 of its content differs); replace it")
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {error.returncode}"
    return str(error)
