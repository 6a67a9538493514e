"""The built repository on disk: its versions, and how one is added without a reader ever seeing half of it."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_UINT8, ModelConfig, ModelWarmup

from alexnet_triton.common.files import replacing, sync, write_errors, write_json
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.settings import MAX_WAIT_S, SIZES, MachineSettings, file_for_cores, read_tuned
from alexnet_triton.serving.repository import PARKED, ReferenceAnswer, unpark, write_references

SOURCE = Path(__file__).resolve().parent.parent / "model_repository"
# File of a built model -> the source's files for it, by preference. Where there is none, Triton takes config.pbtxt.
CONFIGS = {
    "config.pbtxt": ("config.pbtxt",),
    "configs/cpu.pbtxt": ("configs/cpu.pbtxt",),
    "configs/gpu-python.pbtxt": ("configs/gpu-python.pbtxt",),
    "configs/onnxruntime.pbtxt": ("configs/onnxruntime.pbtxt", "configs/cpu.pbtxt"),
    **{file_for_cores(cores): ("configs/cpu.pbtxt",) for cores in SIZES},
}
MANIFEST = "manifest.json"
# A file where Python would make a folder for the compiled model.py: a folder that changes after a version's load makes
# Triton load the version again at the next load of its model. The stubs do not heed PYTHONDONTWRITEBYTECODE.
NO_CACHE = "__pycache__"
STAGING = ".staging."
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
    references: tuple[ReferenceAnswer, ...]
    manifest: dict[str, Any] = field(default_factory=dict)
    max_wait_s: float = MAX_WAIT_S  # in each queue
    notes: tuple[str, ...] = ()  # for the publisher, of precisions that fail


def versions(repository: Path) -> list[int]:
    """Published versions, oldest first."""
    folders = (repository / "classify").glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders if (folder / MANIFEST).is_file())


def read_network(repository: Path, version: int) -> Network:
    """The network of a published version."""
    manifest = json.loads((repository / "classify" / str(version) / MANIFEST).read_text())
    return Network(**manifest["network"])


@contextmanager
def stage(repository: Path, publication: Publication) -> Iterator[Path]:
    """Everything of a version in a folder that no reader looks at, on the disk: `network` and `classify` in it.

    Raises:
        WriteError: it cannot be written.
    """
    with _staging(repository) as folder:
        with write_errors(repository):
            _fill(folder, publication)
        yield folder


def add_version(repository: Path, staging: Path, publication: Publication) -> int:
    """Add what is staged as the next version, parked; returns its number. Needs the repository's lock.

    At every moment the repository serves the version before: folders are renamed, files are replaced.

    Raises:
        PublishError: a version of this model has other sizes.
        WriteError: it cannot be written.
    """
    version, network = max(versions(repository), default=0) + 1, publication.network
    _check_neighbours(repository, network)
    settings = MachineSettings(read_tuned(repository), publication.max_wait_s)
    with _model(repository / network.preprocess) as folder:
        _write_preprocess(folder, network, settings)
    with _model(repository / network.name) as folder:
        _write_text(folder / "labels.txt", _lines(publication.labels))
        _write_configs(folder, "alexnet", network, settings)
    _rename(staging / "network", repository / PARKED / network.name / str(version))
    with _model(repository / "classify") as folder:  # the first version also writes the configuration: a model has one
        _write_text(folder / _labels_file(version), _lines(publication.labels))
        _rename(staging / "classify", folder / str(version))
        if not (folder / "config.pbtxt").is_file():
            _write_configs(folder, "classify", network, settings, [version])
    return version


def add_again(repository: Path, version: int) -> int:
    """Add a parked version once more, as the next; returns its number. Needs the repository's lock.

    The files of both are the same ones on the disk. The manifest's `again` names the first version of them.

    Raises:
        WriteError: it cannot be written.
    """
    again, network, classify = max(versions(repository)) + 1, read_network(repository, version), repository / "classify"
    parked = repository / PARKED / network.name
    labels = (classify / _labels_file(version)).read_text(encoding="utf-8")
    with _staging(repository) as staging:
        with write_errors(repository):
            _link(parked / str(version), staging / "network", version)
            _link(classify / str(version), staging / "classify", version)
            for path in (repository / network.name / "labels.txt", classify / _labels_file(again)):
                _write_text(path, labels)
        _rename(staging / "network", parked / str(again))
        _rename(staging / "classify", classify / str(again))
    return again


def set_served_version(repository: Path, version: int, before: int | None = None) -> None:
    """Have Triton find a published version, beside the served one, and `classify` answer with it at its next load.

    Args:
        before: a version that `classify` keeps beside it, a lower number. Triton answers with the highest; it makes
            a request's labels only while the version that had the request is loaded.

    Raises:
        WriteError: it cannot be written.
    """
    with write_errors(repository):
        unpark(repository, version)
    settings = MachineSettings(read_tuned(repository))
    kept = [version] if before is None else [before, version]
    _write_configs(repository / "classify", "classify", read_network(repository, version), settings, kept)


def remove_version(repository: Path, version: int) -> None:
    """Remove a version that is not served. Needs the repository's lock."""
    network = read_network(repository, version)
    shutil.rmtree(repository / "classify" / str(version))
    for folder in (repository, repository / PARKED):
        shutil.rmtree(folder / network.name / str(version), ignore_errors=True)
    (repository / "classify" / _labels_file(version)).unlink(missing_ok=True)
    if not any(read_network(repository, other).name == network.name for other in versions(repository)):
        for folder in (repository, repository / PARKED):
            shutil.rmtree(folder / network.name, ignore_errors=True)


def remove_leftovers(repository: Path) -> None:
    """Remove what publications left that were killed. Needs the repository's lock."""
    for folder in repository.glob(f"{STAGING}*"):
        _remove_unless_locked(folder)
    published = {str(version) for version in versions(repository)}
    for folder in (repository / PARKED).glob("*/[0-9]*"):
        if folder.name not in published:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder that no reader looks at, and that goes at the end."""
    folder = repository / f"{STAGING}{secrets.token_hex(4)}"  # containers have the same process ids
    try:
        with write_errors(repository):
            lock = _make_locked(folder)
        try:
            yield folder
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_locked(folder: Path) -> int:
    """Make a folder; its lock, which the descriptor holds, says that its publication is alive."""
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _remove_unless_locked(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _fill(staging: Path, publication: Publication) -> None:
    network, classify = staging / "network", staging / "classify"
    network.mkdir()
    classify.mkdir()
    for name, file in {**publication.artefacts, "model.py": SOURCE / "alexnet" / "1" / "model.py"}.items():
        shutil.copyfile(file, network / name)
    (network / NO_CACHE).touch()
    write_references(classify, publication.references)
    for folder in (network, classify):
        write_json(folder / MANIFEST, {**publication.manifest, "network": asdict(publication.network)})
        for path in (*folder.iterdir(), folder):
            sync(path)


def _link(source: Path, target: Path, version: int) -> None:
    """A folder of a version once more: hard links where the file system has them, and a manifest of its own."""
    shutil.copytree(source, target, copy_function=_link_file)
    manifest = json.loads((source / MANIFEST).read_text())
    write_json(target / MANIFEST, {"again": version, **manifest})
    sync(target / MANIFEST)
    sync(target)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(Path(target))


def _check_neighbours(repository: Path, network: Network) -> None:
    """All versions of a model share its configuration: they must have the same sizes."""
    for version in versions(repository):
        other = read_network(repository, version)
        if other.name == network.name and other != network:
            raise PublishError(
                f"{repository}: {network.name} there has {other.classes} classes at {other.size} pixels, this one "
                f"{network.classes} at {network.size}; publish it under another --name, or to another --repository"
            )


def _write_preprocess(folder: Path, network: Network, settings: MachineSettings) -> None:
    (folder / "1").mkdir(exist_ok=True)
    if not (folder / "1" / NO_CACHE).exists():  # an older publication left a folder
        _write_text(folder / "1" / NO_CACHE, "")
    _write_text(folder / "1" / "model.py", (SOURCE / "preprocess" / "1" / "model.py").read_text())
    _write_configs(folder, "preprocess", network, settings)


def _write_configs(
    target: Path, model: str, network: Network, settings: MachineSettings, loaded: Sequence[int] = ()
) -> None:
    """Every variant's configuration of one of the source's models; `loaded` are versions of `classify`."""
    for file, candidates in CONFIGS.items():
        sources = [SOURCE / model / candidate for candidate in candidates if (SOURCE / model / candidate).is_file()]
        if sources:
            config = text_format.Parse(sources[0].read_text(), ModelConfig())
            settings.fit(model, file, config)
            _fit_config(config, network, loaded)
            _write_text(target / file, text_format.MessageToString(config))
        else:  # an older publication may have left one, which Triton would prefer to config.pbtxt
            (target / file).unlink(missing_ok=True)


def _fit_config(config: ModelConfig, network: Network, loaded: Sequence[int]) -> None:
    """Put a network's names and sizes, and for `classify` its versions, into a configuration, in place."""
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
    if loaded:
        _fit_versions(config, names, loaded)


def _fit_versions(config: ModelConfig, names: dict[str, str], loaded: Sequence[int]) -> None:
    version = max(loaded)
    config.version_policy.specific.versions[:] = loaded
    config.output[0].label_filename = _labels_file(version)
    for step in config.ensemble_scheduling.step:
        if step.model_name == "alexnet":
            step.model_version = version
        step.model_name = names[step.model_name]


def _write_graphs(config: ModelConfig, dims: list[int]) -> None:
    """A CUDA graph and a warm-up for each batch size of the parameter `graph_batch_sizes`, up to the largest batch.

    A graph serves its own batch size and those above the next smaller graph, so that every batch that the queue forms
    has one. The backend captures them when it makes an instance; the warm-ups run each before the first caller comes.
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


def _lines(labels: tuple[str, ...]) -> str:
    return "".join(f"{label}\n" for label in labels)


def _write_text(path: Path, text: str) -> None:
    """Replace a file, unless it holds the text already: Triton reloads a model whose files are newer."""
    if not path.is_file() or path.read_text() != text:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
        sync(path.parent)


@contextmanager
def _model(target: Path) -> Iterator[Path]:
    """A model's folder: a new one appears only when it is complete."""
    if target.is_dir():
        yield target
        return
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with write_errors(target):
            staging.mkdir(parents=True)
        yield staging
        _rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _rename(folder: Path, target: Path) -> None:
    """Rename a folder, in place of what an interrupted publication left there."""
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        sync(folder)
        folder.replace(target)
        sync(target.parent)
