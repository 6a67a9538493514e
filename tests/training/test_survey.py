"""A folder of photographs is looked at before it is trained on, and divided where it has no split."""

import io
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.common import files
from alexnet_triton.training import data, survey, train
from alexnet_triton.training.data import FileSplit, is_test, map_files, open_dataset
from alexnet_triton.training.errors import DataError
from tests.training.test_data import TINY

CLASSES = ("cat", "dog")


def write_photographs(folder: Path, count: int, first: int = 0) -> Path:
    """`count` different images in each class folder, the first of 24 x 20 pixels, each a pixel wider."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            rng = np.random.default_rng((zlib.crc32(name.encode()), number))
            Image.fromarray(rng.integers(0, 256, (20, 24 + number, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with a split: 12 images of each class to train, 11 to test."""
    write_photographs(tmp_path / "pets" / "train", 12)
    write_photographs(tmp_path / "pets" / "test", 11, first=100)
    return tmp_path / "pets"


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """Exit code, printed lines and errors of the command."""
    code = train.main(["--data", str(folder), "--check"])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


def paths(split: object) -> set[Path]:
    assert isinstance(split, FileSplit)
    return set(split.paths)


def test_a_sound_folder(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, errors = check(pets, capsys)
    assert (code, errors) == (0, "")
    assert lines == [
        "pets: 2 classes, 24 training and 22 test images",
        "  class    train     test",
        "  cat         12       11",
        "  dog         12       11",
        "sizes: smallest 24 x 20, median 35 x 20, largest 134 x 20 pixels",
        "damaged: 0 of 46 files",
        "in both train and test, by the SHA-256 of the file: 0",
        "classes of fewer than 10 training images: 0",
    ]


def test_what_is_noteworthy_is_named(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(pets / "train/cat/3.png", pets / "test/dog/copy.png")
    for number in range(3):
        (pets / f"train/dog/{number}.png").unlink()
    code, lines, errors = check(pets, capsys)
    assert (code, errors) == (0, "")
    at = lines.index("in both train and test, by the SHA-256 of the file: 1")
    assert lines[at + 1] == f"  {pets}/train/cat/3.png = {pets}/test/dog/copy.png"
    assert lines[-2:] == ["classes of fewer than 10 training images: 1", "  dog (9)"]


def test_damaged_files_are_found_behind_their_headers_and_refused(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        path = pets / f"train/cat/{number}.png"
        path.write_bytes(path.read_bytes()[:200])
    code, lines, errors = check(pets, capsys)
    assert code == 1
    assert errors == (
        "alexnet-triton train: pets cannot be trained on: 12 of 24 train images are damaged, "
        "more than a run skips: replace them\n"
    )
    at = lines.index("damaged: 12 of 46 files")
    assert lines[at + 1].startswith(f"  {pets}/train/cat/0.png: damaged PNG image: ")
    assert lines[at + 11] == "  and 2 more"


def test_a_folder_of_another_layout_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, reason in ((tmp_path, "0 class folders"), (tmp_path / "absent", "no such folder")):
        code, lines, errors = check(folder, capsys)
        assert (code, lines, errors.count("\n")) == (1, [], 1)
        assert reason in errors


def test_only_a_folder_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        train.parse(["--check"])
    assert refusal.value.code == 2
    assert "--check looks at a folder of photographs" in capsys.readouterr().err


def test_a_run_starts_with_the_same_in_a_line(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pets / "train/cat/3.png", pets / "test/dog/copy.png")
    assert train.main(["--data", str(pets), "--output", str(tmp_path / "pets.pt"), *TINY]) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "pets: 2 classes, 24 training and 23 test images; sizes: smallest 24 x 20, median 35 x 20, largest 134 x 20 "
        "pixels; 0 damaged, 1 in both train and test, 0 classes of fewer than 10 images; --check names them"
    )
    monkeypatch.setattr(survey, "READ_AT_START", 46)
    counted = survey.short_summary(open_dataset(str(pets)))
    assert counted == "pets: 2 classes, 24 training and 23 test images; --check reads all of them"


def test_a_folder_without_a_split_is_divided_by_content(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "photos", 100)
    dataset = open_dataset(str(folder))
    train_paths, test_paths = paths(dataset.train), paths(dataset.test)
    assert dataset.divided
    assert dataset.classes == CLASSES
    assert 25 <= len(test_paths) <= 55  # a fifth of 200
    assert len(train_paths) + len(test_paths) == 200
    assert test_paths == {path for path in folder.glob("*/*") if int(files.sha256(path)[:8], 16) < 2**32 / 5}
    assert {int(label) for label in dataset.test.labels} == {0, 1}


def test_the_split_stays_as_files_are_added_renamed_and_copied(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "photos", 20)
    before = open_dataset(str(folder))
    tested = next(iter(paths(before.test)))
    write_photographs(folder, 20, first=50)
    copy = shutil.copy(tested, folder / "dog" / "copy.png")
    renamed = tested.rename(tested.with_name("renamed.png"))
    after = open_dataset(str(folder))
    assert {copy, renamed} | paths(before.test) - {tested} <= paths(after.test)
    assert paths(before.train) <= paths(after.train)


def test_a_class_too_small_to_be_divided_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_photographs(tmp_path / "photos", 30)
    for path in filter(lambda path: not is_test(path), [*(folder / "cat").iterdir()]):
        path.unlink()
    code, _, errors = check(folder, capsys)
    assert code == 1
    assert errors == (
        f"alexnet-triton train: {folder}/cat: too few images, all of them fall to the test split; add some\n"
    )
    for path in filter(is_test, [*folder.glob("*/*")]):
        path.unlink()
    write_photographs(folder, 30)
    for path in filter(is_test, [*folder.glob("*/*")]):
        path.unlink()
    with pytest.raises(DataError, match="none of them falls to the test split; add some, or make test/"):
        open_dataset(str(folder))


def test_a_divided_folder_is_trained_on_and_its_test_split_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_photographs(tmp_path / "photos", 30)
    code, lines, _ = check(folder, capsys)
    assert code == 0
    assert lines[0].endswith(" test images, divided by content")
    assert train.main(["--data", str(folder), "--output", str(tmp_path / "photos.pt"), *TINY]) == 0
    assert data.pictures_main(["--data", str(folder), "--to", str(tmp_path / "test")]) == 0
    assert len([*(tmp_path / "test").glob("*/*.jpeg")]) == len(paths(open_dataset(str(folder)).test))


def test_a_bar_shows_where_reading_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alexnet_triton.training import data, log

    terminal, seen = io.StringIO(), [Path(str(number)) for number in range(2500)]

    def bar() -> log.Progress:
        return log.Progress(
            *log.Progress.get_default_columns(), console=log.Console(file=terminal, force_terminal=True)
        )

    monkeypatch.setattr(data, "progress_bar", bar)
    monkeypatch.setattr(data, "BAR_AFTER_S", math.inf)
    assert [*map_files(lambda path: path.name, seen, "reading")] == [path.name for path in seen]
    assert "reading" not in terminal.getvalue()
    monkeypatch.setattr(data, "BAR_AFTER_S", 0.0)
    assert [*map_files(lambda path: path.name, seen, "reading")] == [path.name for path in seen]
    assert "reading" in terminal.getvalue()
