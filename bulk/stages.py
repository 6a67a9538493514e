"""What the machines of a cluster do: read and decode as tasks, the network or a client of Triton as actors."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
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

BLOCK_ROWS = 128  # images that go from one stage to the next at once: 20 MB of pixels
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

    The precision is chosen once, so that an answer does not depend on the machine of the cluster that gives it.

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


def read_stage(rows: pa.Table, folder: str) -> Iterator[pa.Table]:
    """Inputs of the list, with their `number`, to tables of at most `BLOCK_ROWS` with `encoded` and `error`."""
    contents, numbers = read_inputs(rows, folder), iter(rows.column("number").to_pylist())
    while block := list(islice(contents, BLOCK_ROWS)):
        yield pa.table(
            {
                "number": pa.array(list(islice(numbers, len(block))), pa.int64()),
                "encoded": pa.array([each if isinstance(each, bytes) else b"" for each in block], pa.large_binary()),
                "error": pa.array([each if isinstance(each, str) else None for each in block], pa.string()),
            }
        )


def decode_stage(rows: pa.Table, folder: str, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the list, with their `number`, to blocks with `pixels`, uint8 [n, size, size, 3], and `error`.

    What cannot be read or decoded has an error and black pixels.
    """
    contents, numbers = read_inputs(rows, folder), rows.column("number").to_numpy()
    for start in range(0, len(numbers), BLOCK_ROWS):
        chosen = numbers[start : start + BLOCK_ROWS]
        pixels, errors = np.empty((len(chosen), size, size, 3), np.uint8), np.full(len(chosen), "", object)
        for row, content in enumerate(islice(contents, len(chosen))):
            try:
                if isinstance(content, str):
                    raise ImageError(content)
                pixels[row] = decode(content, size)
            except ImageError as error:
                errors[row], pixels[row] = str(error), 0
        yield {"number": chosen, "pixels": pixels, "error": errors}


class NetworkStage:
    """The network: an actor of one thread. Blocks of `decode_stage` to tables of `ANSWER_SCHEMA`."""

    def __init__(self, model: Model, content: "ObjectRef[bytes]", top: int) -> None:
        """`content` is the model's file.

        Raises:
            EngineError: OpenVINO does not take it.
        """
        self._model, self._top = model, min(top, len(model.labels))
        self._engine = _load(model, content)

    def __call__(self, block: Mapping[str, np.ndarray]) -> pa.Table:
        good = np.flatnonzero(block["error"] == "")
        pixels = block["pixels"] if len(good) == len(block["error"]) else block["pixels"][good]
        step = self._model.config.max_batch_size
        found = [self._engine.infer(pixels[start : start + step]) for start in range(0, len(pixels), step)]
        tops = iter(self._describe(np.concatenate(found))) if found else iter(())
        rows = [
            answer(int(number), [], error, self._model.version)
            if error
            else answer(int(number), next(tops), None, self._model.version)
            for number, error in zip(block["number"], block["error"], strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)

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

    with tempfile.TemporaryDirectory(prefix="alexnet-triton-") as folder:
        (Path(folder) / model.file.name).write_bytes(ray.get(content))
        return load_engine(Path(folder), model.config)


class TritonStage:
    """A client of running Tritons: blocks of `read_stage` to tables of `ANSWER_SCHEMA`."""

    def __init__(self, urls: Sequence[str], version: str, top: int) -> None:
        self._classifier = Classifier(*urls, top=top, concurrency=URL_CONCURRENCY, batch=0)
        self._version = version

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = block.to_pylist()
        readable = [row["encoded"] for row in rows if row["error"] is None]
        results = self._classifier.classify_many(readable)
        answers = [self._answer(row, None if row["error"] else next(results)) for row in rows]
        return pa.Table.from_pylist(answers, schema=ANSWER_SCHEMA)

    def _answer(self, row: Mapping[str, Any], result: Classification | Failure | None) -> dict[str, Any]:
        if result is None or isinstance(result, Failure):
            if result is not None and result.error.transient:
                raise result.error
            return answer(row["number"], [], row["error"] or str(result and result.error), self._version)
        if result.version != self._version:
            raise BulkError(
                f"the server changed from version {self._version} to {result.version}: give another --output"
            )
        top = [label(each.label, each.index, each.probability) for each in result.top]
        return answer(row["number"], top, None, self._version)


def label(name: str, index: int, probability: float) -> dict[str, Any]:
    """A class in `top`."""
    return {"label": name, "index": index, "probability": probability}


def answer(number: int, top: Sequence[Mapping[str, Any]], error: str | None, version: str) -> dict[str, Any]:
    """A row of `ANSWER_SCHEMA`: the first of `top` is the answer; an input with an error has none."""
    first = top[0] if top else label("", 0, 0.0) | dict.fromkeys(("label", "index", "probability"))
    return {"number": number, **first, "top": list(top), "error": error, "model_version": version}
