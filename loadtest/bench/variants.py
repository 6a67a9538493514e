"""A built repository under other configurations, without copying its networks."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

Edit = Callable[[ModelConfig], None]


@contextmanager
def variant(repository: Path, target: Path, edit: Edit) -> Iterator[Path]:
    """A repository of links to the other's files, whose configurations for a processor are edited."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(repository, target, copy_function=lambda source, link: Path(link).hardlink_to(source))
    try:
        rewrite(target, edit)
        yield target
    finally:
        shutil.rmtree(target)


def rewrite(repository: Path, edit: Edit) -> None:
    """Edit the configurations in place, each replaced in one step; one that stays as it is is left alone, because
    Triton loads a model anew when a file of it is newer."""
    for path in repository.glob("*/configs/cpu.pbtxt"):
        config = text_format.Parse(path.read_text(), ModelConfig())
        before = config.SerializeToString(deterministic=True)
        edit(config)
        if config.SerializeToString(deterministic=True) != before:
            new = path.with_name(f".{path.name}.{os.getpid()}")
            new.write_text(text_format.MessageToString(config))
            new.replace(path)
