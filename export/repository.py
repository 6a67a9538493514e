"""The built repository on disk: its versions, and how one is added so that no reader sees half of it."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.errors import PublishError

SOURCE = Path(__file__).resolve().parent.parent / "model_repository"
CONFIGS = ("config.pbtxt", "configs/cpu.pbtxt", "configs/native.pbtxt")
KEPT_VERSIONS = 2


@dataclass(frozen=True)
class Publication:
    """What becomes one version."""

    classes: tuple[str, ...]
    size: int  # height and width of the network's input
    artefacts: dict[str, Path]  # file name in the version folder -> file to copy
    known_image: bytes
    known_answer: dict[str, Any]  # index, label, probability
    manifest: dict[str, Any] = field(default_factory=dict)


def versions(repository: Path) -> list[int]:
    """Published versions, oldest first."""
    folders = (repository / "classify").glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def write_version(repository: Path, publication: Publication, source: Path = SOURCE) -> int:
    """Add the next version, and make it the one that `classify` answers with when it is next loaded.

    The order makes every moment in between a repository that serves the version before: folders
    that no configuration names yet, then `alexnet` with room for them, then `classify`, the switch.

    Raises:
        PublishError: it cannot be written; nothing that is served has changed.
    """
    version = max(versions(repository), default=0) + 1
    try:
        _write_version_folders(repository, source, publication, version)
        _write_labels(repository, publication.classes, version)
        for model in ("preprocess", "alexnet", "classify"):
            _write_configs(repository / model, source / model, publication, version)
    except OSError as error:
        raise PublishError(f"{error.filename or repository}: cannot be written: {error.strerror}") from error
    return version


def _write_version_folders(repository: Path, source: Path, publication: Publication, version: int) -> None:
    code = source / "alexnet" / "1" / "model.py"
    _put_folder(
        repository / "alexnet" / str(version), {**publication.artefacts, "model.py": code}, publication.manifest
    )
    decoder = Path("preprocess", "1", "model.py")
    write_text(repository / decoder, (source / decoder).read_text())
    known = repository / "classify" / str(version)
    with _staged(known) as staging:
        (staging / "known.jpg").write_bytes(publication.known_image)
        (staging / "known.json").write_text(json.dumps(publication.known_answer) + "\n")


def _put_folder(folder: Path, files: dict[str, Path], manifest: dict[str, Any]) -> None:
    with _staged(folder) as staging:
        for name, file in files.items():
            shutil.copyfile(file, staging / name)
        if manifest:
            (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder that is filled under another name and then renamed, replacing what was there."""
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        yield staging
        shutil.rmtree(target, ignore_errors=True)
        staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_labels(repository: Path, classes: Iterable[str], version: int) -> None:
    for model in ("alexnet", "classify"):
        write_text(repository / model / f"labels.{version}.txt", "".join(f"{name}\n" for name in classes))


def _write_configs(target: Path, source: Path, publication: Publication, version: int) -> None:
    for name in CONFIGS:
        if (source / name).is_file():
            config = text_format.Parse((source / name).read_text(), ModelConfig())
            fit_config(config, publication, version)
            write_text(target / name, text_format.MessageToString(config))


def fit_config(config: ModelConfig, publication: Publication, version: int) -> None:
    """Put a publication's sizes, class count, labels and version into a model's configuration."""
    pixels = [publication.size, publication.size, 3]
    for tensor in (*config.input, *config.output):
        if tensor.name == "images":
            tensor.dims[:] = pixels
        if tensor.name == "probabilities":
            tensor.dims[:] = [len(publication.classes)]
            tensor.label_filename = f"labels.{version}.txt"
    if config.name == "classify":
        config.version_policy.specific.versions[:] = [version]
        for step in config.ensemble_scheduling.step:
            if step.model_name == "alexnet":
                step.model_version = version


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
