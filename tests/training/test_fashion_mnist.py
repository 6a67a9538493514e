"""Fashion-MNIST is found or fetched, and changed files are refused."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.training import fashion_mnist
from alexnet_triton.training.errors import DataError


def test_the_files_are_found_and_whole(fashion_mnist_folder: Path) -> None:
    images, labels = fashion_mnist.load(fashion_mnist_folder, "test")
    assert images.shape == (10_000, 28, 28)
    assert np.array_equal(np.bincount(labels), [1000] * 10)


def test_a_given_folder_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        fashion_mnist.locate(tmp_path, tmp_path / "fetched")


def test_a_changed_file_is_refused(fashion_mnist_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(fashion_mnist_folder, folder)
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[-1] ^= 1
    labels.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: not Fashion-MNIST's file"):
        fashion_mnist.locate(folder, tmp_path / "fetched")


def test_an_archive_that_unpacks_without_end_is_refused(fashion_mnist_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bomb"
    shutil.copytree(fashion_mnist_folder, folder)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DataError, match="not Fashion-MNIST's file"):
        fashion_mnist.load(folder, "test")


def test_when_nothing_works_one_line_lists_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError) as refusal:
        fashion_mnist.locate(None, tmp_path / "data" / "fetched")
    message = str(refusal.value)
    assert "absent" in message
    assert "no apt-get" in message
    assert "127.0.0.1:9" in message
    assert "DATA=" in message
    assert "\n" not in message
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get: not a Debian or Ubuntu machine")
def test_debians_package_is_unpacked_without_installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", Path("/usr/share/datasets/fashion-mnist"))
    target = tmp_path / "files"
    target.mkdir()
    fashion_mnist._from_debian(target)
    assert fashion_mnist.load(target, "train")[0].shape == (60_000, 28, 28)
    assert [entry.name for entry in tmp_path.iterdir()] == ["files"]
