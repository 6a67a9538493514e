"""CIFAR-10 out of archives laid out as its own are, in both versions, and what is said of others."""

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.training import cifar10
from alexnet_triton.training.data import open_dataset
from alexnet_triton.training.errors import DataError

ROWS = 4  # a part, where CIFAR-10's have 10,000


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def parts() -> dict[str, tuple[np.ndarray, list[int]]]:
    """Planes of 3 x 1024 and labels by name."""
    names = (*cifar10.PARTS["train"], *cifar10.PARTS["test"])
    rng = np.random.default_rng(0)
    return {name: (rng.integers(0, 256, (ROWS, 3072), np.uint8), rng.integers(0, 10, ROWS).tolist()) for name in names}


def binary(planes: np.ndarray, labels: list[int]) -> bytes:
    return np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1).tobytes()


def python(planes: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": planes, b"labels": labels}, protocol=2)


@pytest.fixture(params=[cifar10.BINARY, cifar10.PYTHON])
def archive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = request.param
    write, suffix = (binary, ".bin") if name == cifar10.BINARY else (python, "")
    path = write_archive(tmp_path / name, {part + suffix: write(*values) for part, values in parts().items()})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.ARCHIVES, name, replace(cifar10.ARCHIVES[name], sha256=sha256))
    return path


def test_both_versions_give_the_same_images(archive: Path) -> None:
    dataset = open_dataset("cifar10", archive.parent)
    assert dataset.classes[3] == "cat"
    assert len(dataset.train.labels) == 5 * ROWS
    planes, labels = parts()["test_batch"]
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


class Payload:
    """Would run a command where pickles are trusted."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def test_a_pickle_with_anything_but_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_archive(tmp_path / cifar10.PYTHON, {"test_batch": pickle.dumps(Payload())})
    with pytest.raises(DataError, match=r"posix\.system in it"):
        cifar10.load(path, "test")
    assert not (tmp_path / "owned").exists()


def test_without_an_archive_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_listens = replace(cifar10.ARCHIVES[cifar10.BINARY], address=f"http://127.0.0.1:9/{cifar10.BINARY}")
    monkeypatch.setitem(cifar10.ARCHIVES, cifar10.BINARY, nobody_listens)  # on the discard port
    with pytest.raises(DataError, match=r"neither cifar-10-binary\.tar\.gz nor .* put one there"):
        cifar10.locate(tmp_path, tmp_path / "fetched")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9.* cannot be fetched .* put the file into"):
        cifar10.locate(None, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []
