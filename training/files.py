"""Files written in one piece: a reader sees the old one or the new one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file, then rename it to `path`.

    Raises:
        CheckpointError: it cannot be written, for want of space or otherwise; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError where a disk is full
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written ({reason}); free space or give another --output") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    replace(path, lambda temporary: torch.save(values, temporary))


def require_space(folder: Path, needed: int) -> None:
    """Refuse early what would fail after hours.

    Raises:
        CheckpointError: fewer than `needed` bytes are free where `folder` is or will be.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: {free / 2**20:,.0f} MiB free, {needed / 2**20:,.0f} MiB needed for checkpoints; "
            "free space or give another --output"
        )
