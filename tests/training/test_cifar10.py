"""CIFAR-10 from an archive with its layout, and the errors for others."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.training import cifar10
from alexnet_triton.training.data import open_dataset
from alexnet_triton.training.errors import DataError

ROWS = 4  # a member; CIFAR-10's have 10,000


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members() -> dict[str, tuple[np.ndarray, list[int]]]:
    """Planes of 3 x 1024 and labels by name."""
    names = (*cifar10.MEMBERS["train"], *cifar10.MEMBERS["test"])
    rng = np.random.default_rng(0)
    return {name: (rng.integers(0, 256, (ROWS, 3072), np.uint8), rng.integers(0, 10, ROWS).tolist()) for name in names}


def rows(planes: np.ndarray, labels: list[int]) -> bytes:
    return np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1).tobytes()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    contents = {name: rows(*values) for name, values in members().items()}
    path = write_archive(tmp_path / cifar10.ARCHIVE.name, contents)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE", replace(cifar10.ARCHIVE, sha256=sha256))
    return path


def test_images_and_labels_come_out_of_the_archive(archive: Path) -> None:
    dataset = open_dataset("cifar10", archive.parent)
    assert dataset.classes[3] == "cat"
    assert len(dataset.train.labels) == 5 * ROWS
    planes, labels = members()["test_batch.bin"]
    assert dataset.test.labels.tolist() == labels
    image = dataset.test.image(2)
    assert image is not None
    assert np.array_equal(np.asarray(image), planes[2].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_changed_archive_is_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{archive.name}: not the published file"):
        cifar10.locate(archive.parent, archive.parent)


def test_a_damaged_archive_is_named(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{archive.name}: damaged or not CIFAR-10's"):
        cifar10.load(archive, "train")


def test_without_an_archive_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_listens = replace(cifar10.ARCHIVE, address=f"http://127.0.0.1:9/{cifar10.ARCHIVE.name}")
    monkeypatch.setattr(cifar10, "ARCHIVE", nobody_listens)  # on the discard port
    with pytest.raises(DataError, match=r"no cifar-10-binary\.tar\.gz in it; put it there"):
        cifar10.locate(tmp_path, tmp_path / "fetched")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9.* cannot be fetched .* put the file into"):
        cifar10.locate(None, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []
