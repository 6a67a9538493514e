"""Files that are replaced in one step, hashed, and known as images by their names."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from alexnet_triton.common.command import UserError

# What Pillow decodes here and what the client takes from folders, in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp")
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe")


class WriteError(UserError):
    """A file cannot be written; what was there before is as it was."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into a `WriteError` that names `path`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(f"{path}: cannot be written ({reason}); free space or write elsewhere") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file's path beside `path`, which is renamed to `path` at the end of the block.

    A reader sees the old file or the whole new one. When the block raises, the old file stays and the temporary
    one is removed.

    Raises:
        WriteError: the file cannot be written, for want of space or otherwise.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):  # the error that tells what is wrong is the first one
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step.

    Raises:
        WriteError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace several files, each in one step, after the content of all of them is on the disk.

    Raises:
        WriteError: one cannot be written; the others are as they were.
    """
    with ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(replacing(path)).write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Have a file's content, or a folder's list of files, on the disk before what follows: a renaming, say.

    Raises:
        OSError: it cannot be read, or the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES
