"""A built repository with other settings, as a copy of links or in place, and a fresh server on it."""

import argparse
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.common.files import write_text
from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.serving import Server
from alexnet_triton.serving.repository import Repository

Setting = Mapping[str, str]
Edit = Callable[[Mapping[str, ModelConfig]], None]  # of the configurations by their source's names, in place
NETWORK, DECODER, VARIANT = "alexnet", "preprocess", "cpu"


def parse_settings(texts: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of `NAME=VALUE,VALUE...`; one empty setting where there is none.

    Raises:
        SettingError: an unknown name or value.
    """
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or name not in EDITS or not all(values.split(",")):
            raise SettingError(f"--vary {text!r}: give NAME=VALUE,VALUE of {', '.join(EDITS)}, as in batching=off,on")
        axes.append([(name, value) for value in values.split(",")])
    return [dict(each) for each in itertools.product(*axes)]


@contextmanager
def variant_of(repository: Path, setting: Setting, variant: str = VARIANT) -> Iterator[Path]:
    """A copy of a built repository with the setting, gone afterwards; SettingError where a value is impossible."""

    def edit(configs: Mapping[str, ModelConfig]) -> None:
        for name, value in setting.items():
            EDITS[name](configs, value)

    with edited_copy(repository, edit, variant) as copy:
        yield copy


@contextmanager
def edited_copy(repository: Path, edit: Edit, variant: str = VARIANT) -> Iterator[Path]:
    """A copy of a built repository, of links to the same files, with `edit_in_place`; gone afterwards."""
    Repository.open(repository, variant)  # before anything is made
    with tempfile.TemporaryDirectory(prefix=".variant-", dir=repository.absolute().parent) as folder:
        copy = Path(folder) / "model_repository"
        shutil.copytree(repository, copy, copy_function=_link, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        edit_in_place(copy, edit, variant)
        yield copy


def edit_in_place(repository: Path, edit: Edit, variant: str = VARIANT) -> None:
    """Edit the configurations of a built repository, each replaced in one step.

    A configuration that stays as it is keeps its file: Triton reloads a model when a file of it is newer.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    before, after = (Repository.open(repository, variant) for _ in range(2))
    edit(after.by_source_name)
    for name, config in after.configs.items():
        if config != before.configs[name]:
            write_text(after.config_file(name), text_format.MessageToString(config))


def describe_setting(setting: Setting) -> str:
    """The setting as it was given on the command line."""
    return " ".join(f"{name}={value}" for name, value in setting.items()) or "as published"


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _batching(configs: Mapping[str, ModelConfig], value: str) -> None:
    if value not in ("on", "off"):
        raise SettingError(f"batching={value}: on or off")
    for name in (NETWORK, DECODER):
        if value == "off":
            configs[name].ClearField("dynamic_batching")
        else:
            configs[name].dynamic_batching.SetInParent()


def _delay(configs: Mapping[str, ModelConfig], value: str) -> None:
    for name in (NETWORK, DECODER):
        if configs[name].HasField("dynamic_batching"):
            configs[name].dynamic_batching.max_queue_delay_microseconds = _whole("delay", value.removesuffix("us"))


def _instances(name: str) -> Callable[[Mapping[str, ModelConfig], str], None]:
    def edit(configs: Mapping[str, ModelConfig], value: str) -> None:
        configs[name].instance_group[0].count = _whole("instances", value)

    return edit


def _precision(configs: Mapping[str, ModelConfig], value: str) -> None:
    configs[NETWORK].parameters["precision"].string_value = value


def _threads(configs: Mapping[str, ModelConfig], value: str) -> None:
    configs[NETWORK].parameters["threads"].string_value = str(_whole("threads", value))


def _whole(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) > 10**7:
        raise SettingError(f"--vary {name}={value}: give a whole number (delays in microseconds)")
    return int(value)


# `instances` and `threads` are the network's, `decoders` are instances of preprocess, `delay` is in microseconds.
EDITS: dict[str, Callable[[Mapping[str, ModelConfig], str], None]] = {
    "batching": _batching,
    "delay": _delay,
    "instances": _instances(NETWORK),
    "decoders": _instances(DECODER),
    "precision": _precision,
    "threads": _threads,
}


@contextmanager
def fresh_server(arguments: argparse.Namespace, setting: Setting | None = None) -> Iterator[str | None]:
    """The address of a fresh server on `--repository` with the setting, or nothing where that is not given.

    Raises:
        ServingError: it does not start.
        SettingError: a setting that cannot be.
    """
    if arguments.repository is None:
        yield None
        return
    with (
        variant_of(arguments.repository, setting or {}) as repository,
        Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
    ):
        grpc = arguments.url and arguments.url[0].startswith("grpc")
        yield f"grpc://{server.grpc_address}" if grpc else f"http://{server.http_address}"
