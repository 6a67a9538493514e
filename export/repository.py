"""The built repository on disk: its versions, and how one is added so that no reader sees half of it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.export.errors import PublishError

SOURCE = Path(__file__).resolve().parent.parent / "model_repository"
CONFIGS = ("config.pbtxt", "configs/cpu.pbtxt", "configs/native.pbtxt")
MANIFEST = "manifest.json"
PREPROCESS_SIZE = 227  # of the 2012 network


@dataclass(frozen=True)
class Network:
    """What the configurations have to know of a published network."""

    name: str  # the model's name in Triton
    classes: int
    size: int  # height and width of its input
    max_batch_size: int = 32

    @property
    def preprocess(self) -> str:
        """The model that cuts images to this size: networks of several sizes can stand side by side."""
        return "preprocess" if self.size == PREPROCESS_SIZE else f"preprocess_{self.size}"


@dataclass(frozen=True)
class Publication:
    """What becomes one version."""

    network: Network
    labels: tuple[str, ...]
    artefacts: dict[str, Path]  # file name in the version folder -> file to copy
    reference_image: bytes
    reference_answer: dict[str, Any]  # index, label, probability
    manifest: dict[str, Any] = field(default_factory=dict)


def versions(repository: Path) -> list[int]:
    """Published versions, oldest first."""
    folders = (repository / "classify").glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders if (folder / MANIFEST).is_file())


def served_version(repository: Path) -> int | None:
    """The version that `classify` is configured to answer with; None before the first publication."""
    path = repository / "classify" / CONFIGS[0]
    if not path.is_file():
        return None
    return text_format.Parse(path.read_text(), ModelConfig()).version_policy.specific.versions[0]


def read_network(repository: Path, version: int) -> Network:
    """The network of a published version."""
    manifest = json.loads((repository / "classify" / str(version) / MANIFEST).read_text())
    return Network(**manifest["network"])


def write_version(repository: Path, publication: Publication, source: Path = SOURCE) -> int:
    """Add the next version beside the one that is served; `switch` has it answer.

    Every moment in between is a repository that serves the version before: folders are filled
    under another name and renamed, files are replaced, and callers' configuration comes last.

    Raises:
        PublishError: it cannot be written, or a version of this model has other sizes.
    """
    network = publication.network
    version = max(versions(repository), default=0) + 1
    _check_neighbours(repository, network)
    manifest = {**publication.manifest, "network": asdict(network)}
    code = {name: source / name / "1" / "model.py" for name in ("alexnet", "preprocess")}
    with _writing(repository):
        with _model(repository / network.preprocess) as folder:
            write_text(folder / "1" / "model.py", code["preprocess"].read_text())
            _write_configs(folder, source / "preprocess", network.preprocess, network)
        with _model(repository / network.name) as folder:
            with _staged(folder / str(version)) as staging:
                for name, file in {**publication.artefacts, "model.py": code["alexnet"]}.items():
                    shutil.copyfile(file, staging / name)
                _write_json(staging / MANIFEST, manifest)
            _write_labels(folder / "labels.txt", publication.labels)
            _write_configs(folder, source / "alexnet", network.name, network)
        with _model(repository / "classify") as folder:
            _write_labels(folder / labels_file(version), publication.labels)
            with _staged(folder / str(version)) as staging:
                (staging / "known.jpg").write_bytes(publication.reference_image)
                _write_json(staging / "known.json", publication.reference_answer)
                _write_json(staging / MANIFEST, manifest)
            if not (folder / CONFIGS[0]).is_file():
                _write_configs(folder, source / "classify", "classify", network, version)
    return version


def set_served_version(repository: Path, version: int, source: Path = SOURCE) -> None:
    """Have `classify` answer with a published version, from when it is next loaded.

    Raises:
        PublishError: it cannot be written.
    """
    with _writing(repository):
        _write_configs(
            repository / "classify", source / "classify", "classify", read_network(repository, version), version
        )


def remove_version(repository: Path, version: int) -> None:
    """Remove a version that is not served."""
    network = read_network(repository, version)
    shutil.rmtree(repository / "classify" / str(version))
    shutil.rmtree(repository / network.name / str(version), ignore_errors=True)
    (repository / "classify" / labels_file(version)).unlink(missing_ok=True)
    if not any(read_network(repository, other).name == network.name for other in versions(repository)):
        shutil.rmtree(repository / network.name)


def _check_neighbours(repository: Path, network: Network) -> None:
    """One configuration serves all versions of a model, so they have the same sizes."""
    for version in versions(repository):
        other = read_network(repository, version)
        if other.name == network.name and other != network:
            raise PublishError(
                f"{repository}: {network.name} there has {other.classes} classes at {other.size} pixels, this one "
                f"{network.classes} at {network.size}; publish it under another --name, or to another --repository"
            )


def _write_configs(target: Path, source: Path, name: str, network: Network, version: int | None = None) -> None:
    for file in CONFIGS:
        if (source / file).is_file():
            config = text_format.Parse((source / file).read_text(), ModelConfig())
            config.name = name
            fit_config(config, network, version)
            write_text(target / file, text_format.MessageToString(config))


def fit_config(config: ModelConfig, network: Network, version: int | None = None) -> None:
    """Put a network's sizes and class count, and of an ensemble the version, into a configuration, in place."""
    for tensor in (*config.input, *config.output):
        if tensor.name == "images":
            tensor.dims[:] = [network.size, network.size, 3]
        if tensor.name == "probabilities":
            tensor.dims[:] = [network.classes]
            tensor.label_filename = "labels.txt" if version is None else labels_file(version)
    config.max_batch_size = min(config.max_batch_size, network.max_batch_size)
    _fit_graphs(config, [network.size, network.size, 3])
    if config.max_batch_size == 1:
        config.ClearField("dynamic_batching")
    if version is not None:
        config.version_policy.specific.versions[:] = [version]
    for step in config.ensemble_scheduling.step:
        if step.model_name == "preprocess":
            step.model_name = network.preprocess
        else:
            step.model_name, step.model_version = network.name, version


def _fit_graphs(config: ModelConfig, dims: list[int]) -> None:
    """CUDA graphs and warm-up samples: the network's sizes, and no larger batch than it takes."""
    if not config.optimization.cuda.graphs:
        return
    specs, samples = config.optimization.cuda.graph_spec, config.model_warmup
    for larger in [spec for spec in specs if spec.batch_size > config.max_batch_size]:
        specs.remove(larger)
    for large in [sample for sample in samples if sample.batch_size > config.max_batch_size]:
        samples.remove(large)
    for spec in specs:
        spec.input["images"].dim[:] = dims
        if spec.HasField("graph_lower_bound"):
            spec.graph_lower_bound.input["images"].dim[:] = dims
    for sample in samples:
        sample.inputs["images"].dims[:] = dims


def labels_file(version: int) -> str:
    """The name of a version's labels, beside the configuration of `classify`."""
    return f"labels.{version}.txt"


def _write_labels(path: Path, labels: tuple[str, ...]) -> None:
    write_text(path, "".join(f"{label}\n" for label in labels))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece. One that says the same already is left alone.

    Triton loads all versions of a model anew when a file of the model is newer than before.
    """
    if path.is_file() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _model(target: Path) -> Iterator[Path]:
    """A model's folder: where it is new, it appears only when it is complete."""
    if target.is_dir():
        yield target
    else:
        with _staged(target) as staging:
            yield staging


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


@contextmanager
def _writing(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PublishError(f"{error.filename or repository}: cannot be written: {error.strerror}") from error
