"""Images that are odd, broken or no images at all, each in its own line, while the others are answered."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from answers import by_torch
from commands import classify, lines
from photographs import jpeg


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, of a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def blotches(seed: int) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(seed, 60, 40)))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    return encoded(blotches(3).rotate(90, expand=True), "JPEG", exif=exif, quality=95)


GOOD = {
    "cmyk.jpg": encoded(blotches(1).convert("CMYK"), "JPEG"),
    "sixteen bits.png": encoded(Image.fromarray((np.arange(900, dtype=np.uint16) * 72).reshape(30, 30)), "PNG"),
    "animated.gif": encoded(blotches(1), "GIF", save_all=True, append_images=[blotches(2), blotches(3)]),
    "turned.jpg": turned(),
    "one pixel.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "name with spaces, 'single' and \"double\" quotes.jpg": jpeg(4),
    "name with\na line break and \x1b[31m colour.jpg": jpeg(5),
    "@list.jpg": jpeg(6),
    "*.jpg": jpeg(7),
    "größe-写真.webp": encoded(blotches(2), "WEBP"),
    "not utf-8 \udcff.jpg": jpeg(8),
}
BAD = {
    "missing.jpg": (None, "no such file"),
    "empty.jpg": (b"", "empty file"),
    "truncated.jpg": (jpeg(9)[:-80], "damaged"),
    "text.jpg": (b"some words", "not a JPEG, PNG, WebP, GIF or BMP image"),
    "nothing.png": (bomb(0, 0), "damaged"),
    "bomb.png": (bomb(30_000, 30_000), "image of 30000 x 30000 pixels, more than the 25,000,000 allowed"),
    "/dev/zero": (None, "a device, not an image"),
    "folder": (None, "a folder, not an image; --recursive takes the images in it"),
    "pipe": (None, "a pipe, not a file; give it on standard input with -"),
    "huge.jpg": (None, "40,000,000 bytes, more than the 33,554,432 allowed"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bad = {name: content for name, (content, _) in BAD.items() if content is not None}
    for name, content in (GOOD | bad).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(40_000_000)
    return tmp_path


@pytest.mark.parametrize("send", ["encoded", "pixels"])
def test_each_bad_image_has_its_own_line_and_the_others_are_answered(url: str, folder: Path, send: str) -> None:
    names = [name for pair in zip(GOOD, [*BAD, "missing.jpg"], strict=True) for name in pair]
    paths = [f"./{name}" if name[0] == "@" else name for name in names]
    done = classify(*paths, "--url", url, "--format", "json", "--send", send, cwd=folder)
    assert done.returncode == 1
    answers = lines(done.stdout)
    assert [answer["path"].removeprefix("./") for answer in answers] == names
    for name, answer in zip(names, answers, strict=True):
        if name in GOOD:
            expected = by_torch(GOOD[name])
            assert answer["top"][0]["index"] == int(expected.argmax()), name
            assert answer["top"][0]["probability"] == pytest.approx(expected.max(), abs=1e-5)
        else:
            assert BAD[name][1] in answer["error"], name
    complaints = done.stderr.decode().splitlines()
    assert len(complaints) == len(BAD) + 1
    assert all(complaint.startswith("alexnet-classify: ") for complaint in complaints)


def test_an_exif_rotation_is_applied(url: str, folder: Path) -> None:
    upright = encoded(blotches(3), "JPEG", quality=95)
    answer = lines(classify("turned.jpg", "--url", url, "--format", "json", "--top", 1, cwd=folder).stdout)[0]
    assert answer["top"][0]["index"] == int(by_torch(upright).argmax())
    assert answer["top"][0]["probability"] == pytest.approx(by_torch(upright).max(), abs=0.02)


def test_names_cannot_write_on_the_terminal(url: str, folder: Path) -> None:
    done = classify("name with\na line break and \x1b[31m colour.jpg", "--url", url, cwd=folder)
    assert done.stdout.splitlines()[0] == rb"name with\na line break and \x1b[31m colour.jpg"


def test_folders_are_walked_by_name(url: str, tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.PNG", "a/3.jpeg", "0.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "b/again").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    done = classify("-r", ".", "empty", "--url", url, "--format", "json", cwd=tmp_path)
    paths = [answer["path"] for answer in lines(done.stdout)]
    assert paths == ["./0.jpg", "./a/3.jpeg", "./b/1.PNG", "./b/2.jpg", "empty"]
    assert done.returncode == 1
    assert b"empty: no image in this folder" in done.stderr


def test_globs_lists_and_standard_input(url: str, tmp_path: Path) -> None:
    for name in ("x/1.jpg", "x/y/2.jpg", "three\n3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "list.txt").write_text("x/1.jpg\r\n\nx/y/2.jpg\n")
    (tmp_path / "list0").write_bytes(b"three\n3.jpg\0x/1.jpg\0")
    done = classify("**/*.jpg", "@list.txt", "@list0", "x/*.gif", "--url", url, "--format", "json", cwd=tmp_path)
    paths = [answer["path"] for answer in lines(done.stdout)]
    globbed = ["three\n3.jpg", "x/1.jpg", "x/y/2.jpg"]
    assert paths == [*globbed, "x/1.jpg", "x/y/2.jpg", "three\n3.jpg", "x/1.jpg", "x/*.gif"]
    listed = classify("@-", "--url", url, "--format", "json", cwd=tmp_path, stdin=b"x/1.jpg")
    assert [answer["path"] for answer in lines(listed.stdout)] == ["x/1.jpg"]
    piped = classify("-", "--url", url, "--format", "json", stdin=jpeg(4))
    assert lines(piped.stdout)[0]["path"] == "-"
    assert lines(piped.stdout)[0]["top"][0]["index"] == int(by_torch(jpeg(4)).argmax())


def test_a_list_that_is_not_there_is_wrong_usage(url: str, tmp_path: Path) -> None:
    done = classify("@none.txt", "--url", url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, b"alexnet-classify: list none.txt: no such file or directory\n")
