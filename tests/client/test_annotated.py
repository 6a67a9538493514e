"""`--save-annotated`: pictures with bars, and one page of all of them that nothing on it can break."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from alexnet_triton.client.annotated import EntryFile, picture_name
from alexnet_triton.client.errors import UsageError
from alexnet_triton.imaging.sheet import LEAST_SIDE, MOST_SIDE, Entry
from commands import classify, lines
from embedded_triton import Triton
from photographs import jpeg
from tests.waiting import wait_for
from web import Quiet, serving

SHOWN = "<figure "


def page(folder: Path) -> str:
    return unescape((folder / "index.html").read_text())


def test_every_image_has_its_picture_and_its_place_on_the_page(url: str, pictures: list[Path], tmp_path: Path) -> None:
    large, broken = tmp_path / "large <b> & 'é'.jpg", tmp_path / "broken.jpg"
    large.write_bytes(jpeg(1, 1800, 900))
    broken.write_bytes(pictures[0].read_bytes()[:300])
    named = [*pictures[:20], large, broken]
    done = classify(*named, "--url", url, "--format", "json", "--save-annotated", tmp_path / "a/b", "--top", 3)
    assert done.returncode == 1
    answers = lines(done.stdout)
    assert [answer["path"] for answer in answers] == list(map(str, named))  # as without it
    for path in named[:-1]:
        with Image.open(tmp_path / "a/b" / picture_name(str(path))) as picture:
            assert picture.format == "JPEG"
            assert LEAST_SIDE <= picture.width <= MOST_SIDE
    text = page(tmp_path / "a/b")
    assert text.count(SHOWN) == text.count("data:image/jpeg;base64,") == len(named) - 1
    assert all(f"{each['probability']:.1%}" in text for answer in answers[:-1] for each in answer["top"])
    assert f"{broken}: {answers[-1]['error']}" in text
    assert "<b> &" not in (tmp_path / "a/b/index.html").read_text()
    assert "Not classified <small>1</small>" in text


def test_a_name_that_is_no_utf_8_and_standard_input(url: str, pictures: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / b"\xff\n.jpg".decode("utf-8", "surrogateescape")
    odd.write_bytes(pictures[3].read_bytes())
    options = ("--url", url, "--save-annotated", tmp_path / "out")
    done = classify(odd, "-", *options, stdin=pictures[4].read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert r"\xff\n.jpg" in page(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2


def test_images_at_addresses(triton: Triton, pictures: list[Path], tmp_path: Path) -> None:
    class Host(Quiet):
        def respond(self) -> None:
            self.answer(*((200, pictures[5].read_bytes()) if self.path == "/a.jpg" else (404,)))

    with serving(Host) as address:
        found, lost = f"{address}/a.jpg", f"{address}/b.jpg"
        options = ("--allow-urls", "--url", triton.urls["http"], "--save-annotated", tmp_path)
        done = classify(found, lost, *options)
    assert done.returncode == 1
    assert (tmp_path / picture_name(found)).is_file()
    assert f"{lost}: HTTP status 404" in page(tmp_path)


def test_resume_adds_to_the_page(triton: Triton, pictures: list[Path], tmp_path: Path) -> None:
    folder, results = tmp_path / "out", tmp_path / "results.jsonl"
    where = ("--url", triton.urls["grpc"], "--output", results, "--save-annotated", folder)
    assert classify(*pictures[:3], *where).returncode == 0
    with (folder / "entries.jsonl").open("a") as entries:
        entries.write('{"title": "cut o')  # as a killed run leaves it
    assert classify(*pictures[:5], *where, "--resume").returncode == 0
    assert page(folder).count(SHOWN) == 5
    assert classify(*pictures[:2], *where).returncode == 0  # anew
    assert page(folder).count(SHOWN) == 2


def test_no_server_leaves_the_page_of_what_was_done(own: Triton, pictures: list[Path], tmp_path: Path) -> None:
    class Host(Quiet):
        def respond(self) -> None:
            wait_for(lambda: (tmp_path / "entries.jsonl").exists() and (tmp_path / "entries.jsonl").read_bytes())
            own.kill()
            self.answer(200, pictures[1].read_bytes())

    with serving(Host) as address:
        options = ("--allow-urls", "--batch", 1, "--timeout", 2, "--save-annotated", tmp_path)
        done = classify(pictures[0], f"{address}/b.jpg", "--url", own.urls["grpc"], *options)
    assert (done.returncode, done.stderr.count(b"\n")) == (3, 1)
    assert page(tmp_path).count(SHOWN) == 1


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("file", "file exists"),
        ("file/within", "not a directory"),
        ("/proc/1/pictures", "no such file or directory"),
        ("damaged", "no entries of a page"),
        ("site", "holds another index.html"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(
    folder: str, reason: str, triton: Triton, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("damaged", "site"):
        (tmp_path / name).mkdir()
    (tmp_path / "site/index.html").write_text("a site")
    (tmp_path / "damaged/entries.jsonl").write_text('{"path": 1}\n')
    options = ("--output", "results.csv", "--resume", "--save-annotated", folder)
    done = classify(pictures[0], "--url", triton.urls["http"], *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert reason in done.stderr.decode()
    assert folder in done.stderr.decode()
    assert re.search(rb"give (another|a) folder", done.stderr)


def test_a_folder_among_the_images_is_refused(triton: Triton, pictures: list[Path], tmp_path: Path) -> None:
    options = ("--recursive", "--url", triton.urls["http"], "--save-annotated", tmp_path / "new")
    done = classify(tmp_path, *options)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"which --recursive walks" in done.stderr


def test_a_picture_that_cannot_be_written_ends_the_run_in_one_line(
    triton: Triton, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / picture_name(str(pictures[1]))).mkdir()
    done = classify(*pictures[:3], "--url", triton.urls["http"], "--save-annotated", tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"cannot be written" in done.stderr
    assert page(tmp_path).count(SHOWN) == 1


def test_names_of_pictures_are_safe_and_different() -> None:
    names = [picture_name(path) for path in ("a/x.jpg", "b/x.jpg", "../..", "http://h/p?q=<>", "ü" * 300, "-", "")]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 60 and "/" not in name and name[0].isalnum() for name in names)


def test_the_page_has_a_bound_and_memory_holds_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet_triton.client.annotated.MOST_ENTRIES", 3)
    entries = EntryFile(tmp_path / "entries.jsonl", resume=False)
    for number in range(5):
        entries.add(Entry(f"{number}", [("cat", 0.5)], thumbnail=b"\xff\xd8"))
    entries.add(Entry("1", error="late"))
    assert (len(entries), entries.seen) == (3, 5)
    assert [entry.error for entry in entries] == ["", "late", ""]
    assert entries[2].thumbnail == b"\xff\xd8"
    entries.close()
    assert len((tmp_path / "entries.jsonl").read_text().splitlines()) == 4
    (tmp_path / "entries.jsonl").write_text(json.dumps({"title": "x"}) + "\n")
    with pytest.raises(UsageError, match="no entries of a page"):
        EntryFile(tmp_path / "entries.jsonl", resume=True)
