"""What the actors on the machines of a cluster do: read, and decode and run the network, or ask Tritons."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from alexnet_triton.bulk.inputs import BulkError, InputError, read_inputs
from alexnet_triton.client import Classification, Classifier, Failure
from alexnet_triton.common.files import sha256
from alexnet_triton.imaging import ImageError, decode
from alexnet_triton.serving.engine import AUTO, MODEL_FILES, BatchEngine, EngineConfig, fastest_published
from alexnet_triton.serving.repository import Repository, served_version

if TYPE_CHECKING:
    from ray import ObjectRef

BLOCK_ROWS = 128  # answers that an actor hands over at once
URL_CONCURRENCY = 32  # requests in flight of each client
LABEL = pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())])
# number: of the input in the list.
ANSWER_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("label", pa.string()),
        ("index", pa.int32()),
        ("probability", pa.float32()),
        ("top", pa.list_(LABEL)),
        ("error", pa.string()),
        ("model_version", pa.string()),
    ]
)


@dataclass(frozen=True)
class Model:
    """The published version that is served, for machines that do not see the repository.

    Attributes:
        version: as `classify` counts it.
        file: the network's, in the precision that is run; its SHA-256 is `digest`.
        size: height and width of its input, in pixels.
    """

    version: str
    file: Path
    digest: str
    size: int
    labels: tuple[str, ...]
    config: EngineConfig


def find_model(repository: Path) -> Model:
    """The served version of a repository, in the precision that is fastest on this machine.

    The precision is chosen once, so that answers of different machines of the cluster differ by rounding alone.

    Raises:
        ServingError: no repository, or it is broken or misses the network's file.
        InputError: nothing is published in it, or its network needs a GPU.
    """
    version = served_version(repository)
    opened = Repository.open(repository, "cpu")
    if version is None:
        raise InputError(f"{repository}: no published version: make export")
    network = opened.by_source_name["alexnet"]
    folder = opened.path / network.name / str(version)
    parameters = {name: {"string_value": each.string_value} for name, each in network.parameters.items()}
    config = EngineConfig.from_model_config({"parameters": parameters, "max_batch_size": network.max_batch_size})
    precision = fastest_published(folder) if config.precision == AUTO else config.precision
    file = folder / MODEL_FILES[precision]
    if not file.is_file():
        raise InputError(f"no {file}: publish the model in precision {precision}")
    labels = (opened.path / network.name / "labels.txt").read_text(encoding="utf-8").splitlines()
    settings = replace(config, precision=precision, threads=1)
    return Model(str(version), file, sha256(file), int(network.input[0].dims[0]), tuple(labels), settings)


def _blocks(rows: pa.Table, folder: str) -> Iterator[tuple[list[int], Iterator[bytes | str]]]:
    """The numbers of at most `BLOCK_ROWS` rows of the list, and what `read_inputs` gives for each, on demand."""
    contents, numbers = read_inputs(rows, folder), rows.column("number").to_pylist()
    for start in range(0, len(numbers), BLOCK_ROWS):
        block = numbers[start : start + BLOCK_ROWS]
        yield block, islice(contents, len(block))


class NetworkStage:
    """Reads, decodes and classifies: an actor of one thread. Rows of the list to tables of `ANSWER_SCHEMA`.

    Where the network runs on the cores that decode, a stage of its own for each only moves pixels between processes.
    """

    def __init__(self, model: Model, content: "ObjectRef[bytes]", folder: str, top: int) -> None:
        """`content` is the model's file; relative paths count from `folder`.

        Raises:
            EngineError: OpenVINO does not take it.
        """
        self._model, self._folder, self._top = model, folder, min(top, len(model.labels))
        self._engine = _load(model, content)
        self._pixels = np.empty((model.config.max_batch_size, model.size, model.size, 3), np.uint8)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Of rows with their `number`; at most `BLOCK_ROWS` answers a table."""
        for numbers, contents in _blocks(rows, self._folder):
            found = []
            while batch := list(islice(contents, len(self._pixels))):
                found += self._run(batch)
            answers = [answer(number, *each, self._model.version) for number, each in zip(numbers, found, strict=True)]
            yield pa.Table.from_pylist(answers, schema=ANSWER_SCHEMA)

    def _run(self, contents: Sequence[bytes | str]) -> list[tuple[list[dict[str, Any]], str | None]]:
        """For each of a batch of files its likeliest classes, or none and why."""
        errors: list[str | None] = []
        good = 0
        for content in contents:
            try:
                if isinstance(content, str):
                    raise ImageError(content)
                self._pixels[good] = decode(content, self._model.size)
                good += 1
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        tops = iter(self._describe(self._engine.infer(self._pixels[:good])) if good else ())
        return [([], error) if error else (next(tops), None) for error in errors]

    def _describe(self, probabilities: np.ndarray) -> list[list[dict[str, Any]]]:
        """The likeliest classes of each row of float32 [n, classes]; of equal ones the first."""
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._top]
        values = np.take_along_axis(probabilities, best, axis=1)
        return [
            [label(self._model.labels[index], index, value) for index, value in zip(indices, row, strict=True)]
            for indices, row in zip(best.tolist(), values.tolist(), strict=True)
        ]


def _load(model: Model, content: "ObjectRef[bytes]") -> BatchEngine:
    import ray  # the other stages of this module need none of it

    from alexnet_triton.serving.plan_engine import load_engine

    # Engines take a folder of files. Ray may kill this process meanwhile: it leaves a link, to memory that is gone.
    with tempfile.TemporaryDirectory(prefix="alexnet-triton-") as folder, _in_memory(ray.get(content)) as file:
        (Path(folder) / model.file.name).symlink_to(file)
        return load_engine(Path(folder), model.config)


@contextmanager
def _in_memory(content: bytes) -> Iterator[Path]:
    """A file of this process alone, which ends with it."""
    descriptor = os.memfd_create("network")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")


class TritonStage:
    """A client of running Tritons: rows of the list to tables of `ANSWER_SCHEMA`."""

    def __init__(self, urls: Sequence[str], version: str, folder: str, top: int) -> None:
        """Relative paths count from `folder`."""
        self._classifier = Classifier(*urls, top=top, concurrency=URL_CONCURRENCY, batch=0)
        self._version, self._folder = version, folder

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Of rows with their `number`; at most `BLOCK_ROWS` answers a table."""
        for numbers, block in _blocks(rows, self._folder):
            contents = list(block)
            results = self._classifier.classify_many([each for each in contents if isinstance(each, bytes)])
            answers = [
                answer(number, [], content, self._version)
                if isinstance(content, str)
                else self._answer(number, next(results))
                for number, content in zip(numbers, contents, strict=True)
            ]
            yield pa.Table.from_pylist(answers, schema=ANSWER_SCHEMA)

    def _answer(self, number: int, result: Classification | Failure) -> dict[str, Any]:
        if isinstance(result, Failure):
            if result.error.transient:
                raise result.error
            return answer(number, [], str(result.error), self._version)
        if result.version != self._version:
            raise BulkError(
                f"the server changed from version {self._version} to {result.version}: give another --output"
            )
        top = [label(each.label, each.index, each.probability) for each in result.top]
        return answer(number, top, None, self._version)


def label(name: str, index: int, probability: float) -> dict[str, Any]:
    """A class in `top`."""
    return {"label": name, "index": index, "probability": probability}


def answer(number: int, top: Sequence[Mapping[str, Any]], error: str | None, version: str) -> dict[str, Any]:
    """A row of `ANSWER_SCHEMA`: the first of `top` is the answer; an input with an error has none."""
    first = top[0] if top else label("", 0, 0.0) | dict.fromkeys(("label", "index", "probability"))
    return {"number": number, **first, "top": list(top), "error": error, "model_version": version}
