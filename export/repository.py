"""The built repository on disk: its versions, and how one is added without a reader ever seeing half of it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_UINT8, ModelConfig, ModelWarmup

from alexnet_triton.common.files import write_errors, write_json, write_text
from alexnet_triton.export.errors import PublishError

SOURCE = Path(__file__).resolve().parent.parent / "model_repository"
SERVED = "config.pbtxt"  # of `classify`: it names the version that is served
# File of a built model -> the source's files for it, by preference. Where there is none, Triton takes config.pbtxt.
CONFIGS = {
    "config.pbtxt": ("config.pbtxt",),
    "configs/cpu.pbtxt": ("configs/cpu.pbtxt",),
    "configs/onnxruntime.pbtxt": ("configs/onnxruntime.pbtxt", "configs/cpu.pbtxt"),
}
MANIFEST = "manifest.json"
PREPROCESS_SIZE = 227  # of the 2012 network


@dataclass(frozen=True)
class Network:
    """What configurations depend on in a published network."""

    name: str  # the model's name in Triton
    classes: int
    size: int  # height and width of its input
    max_batch_size: int = 32

    @property
    def preprocess(self) -> str:
        """The model that crops images to this size: networks of several sizes stand side by side."""
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
    path = repository / "classify" / SERVED
    if not path.is_file():
        return None
    return text_format.Parse(path.read_text(), ModelConfig()).version_policy.specific.versions[0]


def read_network(repository: Path, version: int) -> Network:
    """The network of a published version."""
    manifest = json.loads((repository / "classify" / str(version) / MANIFEST).read_text())
    return Network(**manifest["network"])


def write_version(repository: Path, publication: Publication) -> int:
    """Add the next version beside the served one, without serving it; returns its number.

    At every moment the repository serves the version before: folders are filled under another name and renamed,
    files are replaced, and the configuration of `classify` comes last.

    Raises:
        PublishError: a version of this model has other sizes.
        WriteError: it cannot be written.
    """
    version = max(versions(repository), default=0) + 1
    _check_neighbours(repository, publication.network)
    _write_preprocess(repository, publication.network)
    _write_network(repository, publication, version)
    _write_classify(repository, publication, version)
    return version


def set_served_version(repository: Path, version: int) -> None:
    """Have `classify` answer with a published version when it is next loaded.

    Raises:
        WriteError: it cannot be written.
    """
    _write_configs(repository / "classify", "classify", read_network(repository, version), version)


def remove_version(repository: Path, version: int) -> None:
    """Remove a version that is not served."""
    network = read_network(repository, version)
    shutil.rmtree(repository / "classify" / str(version))
    shutil.rmtree(repository / network.name / str(version), ignore_errors=True)
    (repository / "classify" / _labels_file(version)).unlink(missing_ok=True)
    if not any(read_network(repository, other).name == network.name for other in versions(repository)):
        shutil.rmtree(repository / network.name)


def _check_neighbours(repository: Path, network: Network) -> None:
    """All versions of a model share its configuration: they must have the same sizes."""
    for version in versions(repository):
        other = read_network(repository, version)
        if other.name == network.name and other != network:
            raise PublishError(
                f"{repository}: {network.name} there has {other.classes} classes at {other.size} pixels, this one "
                f"{network.classes} at {network.size}; publish it under another --name, or to another --repository"
            )


def _write_preprocess(repository: Path, network: Network) -> None:
    with _model(repository / network.preprocess) as folder:
        _write_if_changed(folder / "1" / "model.py", (SOURCE / "preprocess" / "1" / "model.py").read_text())
        _write_configs(folder, "preprocess", network)


def _write_network(repository: Path, publication: Publication, version: int) -> None:
    files = {**publication.artefacts, "model.py": SOURCE / "alexnet" / "1" / "model.py"}
    with _model(repository / publication.network.name) as folder:
        with _staged(folder / str(version)) as staging:
            for name, file in files.items():
                shutil.copyfile(file, staging / name)
            _write_manifest(staging, publication)
        _write_labels(folder / "labels.txt", publication.labels)
        _write_configs(folder, "alexnet", publication.network)


def _write_classify(repository: Path, publication: Publication, version: int) -> None:
    """The reference image and its answer. The first version also writes the configuration: a model has to have one."""
    with _model(repository / "classify") as folder:
        _write_labels(folder / _labels_file(version), publication.labels)
        with _staged(folder / str(version)) as staging:
            (staging / "reference.jpg").write_bytes(publication.reference_image)
            write_json(staging / "reference.json", publication.reference_answer)
            _write_manifest(staging, publication)
        if not (folder / SERVED).is_file():
            _write_configs(folder, "classify", publication.network, version)


def _write_manifest(folder: Path, publication: Publication) -> None:
    write_json(folder / MANIFEST, {**publication.manifest, "network": asdict(publication.network)})


def _write_configs(target: Path, model: str, network: Network, version: int | None = None) -> None:
    """Every variant's configuration of one of the source's models; `version` is of `classify`."""
    for file, candidates in CONFIGS.items():
        sources = [SOURCE / model / candidate for candidate in candidates if (SOURCE / model / candidate).is_file()]
        if sources:
            config = text_format.Parse(sources[0].read_text(), ModelConfig())
            _fit_config(config, network, version)
            _write_if_changed(target / file, text_format.MessageToString(config))
        else:  # an older publication may have left one, which Triton would prefer to config.pbtxt
            (target / file).unlink(missing_ok=True)


def _fit_config(config: ModelConfig, network: Network, version: int | None) -> None:
    """Put a network's names and sizes, and for `classify` the version, into a configuration, in place."""
    names = {"preprocess": network.preprocess, "alexnet": network.name, "classify": "classify"}
    config.name = names[config.name]
    config.max_batch_size = min(config.max_batch_size, network.max_batch_size)
    if config.max_batch_size == 1:
        config.ClearField("dynamic_batching")
    dims = {"encoded": [1], "images": [network.size, network.size, 3], "probabilities": [network.classes]}
    for tensor in (*config.input, *config.output):
        tensor.dims[:] = dims[tensor.name]
    if config.optimization.cuda.graphs:
        _write_graphs(config, dims["images"])
    if version is not None:
        _fit_version(config, names, version)


def _fit_version(config: ModelConfig, names: dict[str, str], version: int) -> None:
    config.version_policy.specific.versions[:] = [version]
    config.output[0].label_filename = _labels_file(version)
    for step in config.ensemble_scheduling.step:
        if step.model_name == "alexnet":
            step.model_version = version
        step.model_name = names[step.model_name]


def _write_graphs(config: ModelConfig, dims: list[int]) -> None:
    """A CUDA graph and a warm-up for each batch size of the parameter `graph_batch_sizes`, up to the largest batch.

    A graph serves its own batch size and those above the next smaller graph, so that every batch that the queue forms
    has one. The warm-ups capture the graphs before the first caller comes.
    """
    given = map(int, config.parameters.pop("graph_batch_sizes").string_value.split())
    below = 0
    for size in sorted({min(size, config.max_batch_size) for size in given}):
        spec = config.optimization.cuda.graph_spec.add(batch_size=size)
        spec.input["images"].dim[:] = dims
        if below + 1 < size:
            spec.graph_lower_bound.batch_size = below + 1
            spec.graph_lower_bound.input["images"].dim[:] = dims
        sample = config.model_warmup.add(name=str(size), batch_size=size)
        sample.inputs["images"].MergeFrom(ModelWarmup.Input(data_type=TYPE_UINT8, dims=dims, random_data=True))
        below = size


def _labels_file(version: int) -> str:
    """The name of a version's labels, beside the configuration of `classify`."""
    return f"labels.{version}.txt"


def _write_labels(path: Path, labels: tuple[str, ...]) -> None:
    _write_if_changed(path, "".join(f"{label}\n" for label in labels))


def _write_if_changed(path: Path, text: str) -> None:
    """Replace a file, unless it holds the text already: Triton reloads a model whose files are newer."""
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)


@contextmanager
def _model(target: Path) -> Iterator[Path]:
    """A model's folder: a new one appears only when it is complete."""
    if target.is_dir():
        yield target
    else:
        with _staged(target) as staging:
            yield staging


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder that is filled under another name, then renamed in place of what was there."""
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with write_errors(target):
            staging.mkdir(parents=True)
            yield staging
            shutil.rmtree(target, ignore_errors=True)
            staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
