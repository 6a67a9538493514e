"""What a file of results was begun with, kept beside it, so that a run that goes on asks for the same."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from client.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """The options that decide what a result holds, named as on the command line."""

    model: str
    model_version: str
    top: int
    threshold: float
    labels: tuple[str, ...]


def keep(file: str, settings: Settings, begun: bool) -> None:
    """Write `FILE.settings`; where FILE was `begun` before, its settings must be these.

    Raises:
        UsageError: they are others, or cannot be read or written.
    """
    path = Path(f"{file}.settings")
    if not Path(file).is_file():  # a device or a pipe, which nobody goes on with
        return None
    try:
        if begun and path.is_file():
            return _compare(file, path, settings)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps(asdict(settings)) + "\n")
        new.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _compare(file: str, path: Path, settings: Settings) -> None:
    try:
        before = json.loads(path.read_text())
        before = Settings(**before | {"labels": tuple(before["labels"])})
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{path}: damaged; remove it to go on with what is asked now") from None
    for name, old in asdict(before).items():
        if getattr(settings, name) != old:
            option = "--" + name.replace("_", "-")
            was = "other --labels" if name == "labels" else f"{option} {old}" if old else f"no {option}"
            raise UsageError(f"--resume: {file} was begun with {was}; give the same, or another --output")
