"""The built repository: what is in it, which version of it is served, and whether it can be served at all."""

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from alexnet_triton.common.command import complain
from alexnet_triton.common.files import write_bytes, write_json
from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.serving.errors import RepositoryError

CLASSIFY = Path("classify", "config.pbtxt")  # names the version that is served
PARKED = ".previous"  # <model>/<version> in it: versions that Triton is not to load
LOCK = ".lock"
LOCK_TIMEOUT_S = 120.0
_LOCK_POLL_S = 0.1
VARIANTS = ("cpu", "gpu", "gpu-python", "onnxruntime")
SOURCE_CORES = 2  # that the variant `cpu` is for
# Between engines of one precision, and between a processor and a GPU, answers differ by this much at most; each
# published precision may be the one that is served.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 2e-2, "int8": 5e-2}
DALI_TOLERANCE = 5e-2  # it decodes and scales otherwise than Pillow, with which the answers were made
OLD_TOLERANCE = 5e-2  # of a single image, the one the network is surest of
REFERENCES = "reference.json"


@dataclass(frozen=True)
class ReferenceAnswer:
    """An image, and the probabilities that a healthy `classify` answers for it, by class."""

    version: str
    image: bytes
    label: str  # of the likeliest class
    probabilities: dict[int, float]
    tolerance: float

    @property
    def index(self) -> int:
        """The likeliest class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def distance(self, answer: Sequence[float]) -> float:
        """The largest difference of a probability; infinite where the answer is not of the same classes."""
        if len(answer) <= max(self.probabilities) or not all(map(math.isfinite, answer)):
            return math.inf
        return max(abs(answer[index] - expected) for index, expected in self.probabilities.items())


@dataclass(frozen=True)
class Repository:
    """A built repository. Opening it reads every configuration of the variant."""

    path: Path
    variant: str
    configs: dict[str, ModelConfig]

    @classmethod
    def open(cls, path: str | Path, variant: str, cores: int | None = None) -> "Repository":
        """Check a repository and read the configurations of the models that have a version to load.

        The variant `cpu` becomes that of `cores`, such as `cpu-16`, where there is one; by default of the cores that
        this process may use.

        Raises:
            RepositoryError: it is missing, empty, unreadable, or a configuration is broken or absent.
        """
        path = Path(path).absolute()
        try:
            models = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
            loaded = [model for model in models if has_versions(model)]
            variant = fit_variant(loaded, variant, cores or usable_cores())
            configs = {model.name: _read_config(config_file(model, variant)) for model in loaded}
        except FileNotFoundError as error:
            raise RepositoryError(f"no {error.filename}: build the repository with `make export`") from error
        except OSError as error:
            raise RepositoryError(f"{error.filename} cannot be read: {error.strerror}") from error
        if "classify" not in configs:
            raise RepositoryError(f"no model `classify` in {path}: build the repository with `make export`")
        return cls(path, variant, configs)

    @property
    def classify_steps(self) -> list[str]:
        """The models that an image passes in `classify`."""
        return [step.model_name for step in self.configs["classify"].ensemble_scheduling.step]

    def config_file(self, model: str) -> Path:
        """The file that a model's configuration was read from."""
        return config_file(self.path / model, self.variant)

    @property
    def by_source_name(self) -> dict[str, ModelConfig]:
        """The configurations of `preprocess`, `alexnet` and `classify`, whatever the first two are called here."""
        names = dict(zip(("preprocess", "alexnet"), self.classify_steps, strict=True))
        return {source: self.configs[name] for source, name in {**names, "classify": "classify"}.items()}

    def reference_answers(self, version: str) -> list[ReferenceAnswer]:
        """The reference images of a version of `classify`, and their answers.

        Raises:
            RepositoryError: they are not there or not readable.
        """
        answers = read_references(self.path / "classify" / version, version)
        decoders = [config.parameters["decoder"] for config in self.configs.values() if "decoder" in config.parameters]
        if any(decoder.string_value == "dali" for decoder in decoders):
            return [replace(answer, tolerance=max(answer.tolerance, DALI_TOLERANCE)) for answer in answers]
        return answers


def read_references(folder: Path, version: str) -> list[ReferenceAnswer]:
    """The reference images and their answers in a version folder of `classify`.

    Raises:
        RepositoryError: they are not there or not readable.
    """
    try:
        given = json.loads((folder / REFERENCES).read_text())
        images = given["images"] if "images" in given else [_old_reference(given)]
        return [_read_reference(folder, version, image) for image in images]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"no reference answer in {folder} ({error}): publish the model again") from error


def _read_reference(folder: Path, version: str, given: dict[str, Any]) -> ReferenceAnswer:
    probabilities = {int(index): float(value) for index, value in given["probabilities"].items()}
    image = (folder / given["file"]).read_bytes()
    return ReferenceAnswer(version, image, given["label"], probabilities, float(given["tolerance"]))


def _old_reference(given: dict[str, Any]) -> dict[str, Any]:
    """One image and the probability of its class, as publications wrote them before there were several."""
    probabilities = {given["index"]: given["probability"]}
    return {**given, "file": "reference.jpg", "probabilities": probabilities, "tolerance": OLD_TOLERANCE}


def write_references(folder: Path, answers: Sequence[ReferenceAnswer]) -> None:
    """Write what `read_references` reads.

    Raises:
        OSError: it cannot be written.
    """
    images = []
    for number, answer in enumerate(answers):
        file = folder / f"reference.{number}.jpg"
        file.write_bytes(answer.image)
        given = {"label": answer.label, "tolerance": answer.tolerance, "probabilities": answer.probabilities}
        images.append({"file": file.name, **given})
    write_json(folder / REFERENCES, {"images": images})


def has_versions(model: Path) -> bool:
    """Whether Triton finds a version in a model's folder; all of a network's may be parked."""
    return any(model.glob("[0-9]*"))


def served_version(repository: Path) -> int | None:
    """The version that `classify` is configured to answer with, its highest; None before the first publication.

    Raises:
        RepositoryError: the configuration of `classify` is broken.
    """
    path = repository / CLASSIFY
    return max(_read_config(path).version_policy.specific.versions, default=None) if path.is_file() else None


def unpark(repository: Path, version: int) -> None:
    """Put a parked version's folder where Triton finds it.

    Raises:
        OSError: it cannot be moved.
    """
    for folder in (repository / PARKED).glob(f"*/{version}"):
        _move(folder, repository / folder.parent.name / folder.name)


def settle_versions(repository: Path) -> None:
    """Have `classify` name the served version alone, its network found by Triton, and every other version parked.

    Triton loads each version in a model's folder: two take twice the memory, and one that does not load, because
    another GPU or another TensorRT built its plan, fails the whole model. An interrupted switch leaves both there.

    Raises:
        OSError: a folder cannot be moved.
        WriteError: the configuration cannot be written.
    """
    served = served_version(repository)
    if served is None:
        return
    config = _read_config(repository / CLASSIFY)
    if len(config.version_policy.specific.versions) > 1:
        config.version_policy.specific.versions[:] = [served]
        write_bytes(repository / CLASSIFY, text_format.MessageToString(config).encode())
    unpark(repository, served)
    for manifest in sorted(repository.glob("[!.]*/[0-9]*/manifest.json")):
        folder = manifest.parent
        if folder.parent.name != CLASSIFY.parent.name and folder.name != str(served):
            _move(folder, repository / PARKED / folder.parent.name / folder.name)


def _move(folder: Path, target: Path) -> None:
    """Rename a version's folder, in place of what an interrupted publication left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(target)
    folder.replace(target)


@contextmanager
def locked(
    repository: Path, program: str, *, shared: bool = False, timeout_s: float = LOCK_TIMEOUT_S
) -> Iterator[None]:
    """Hold the repository's lock: publications one after another, and none while a server starts.

    Servers share it. After a second of waiting a line on stderr says for whom. A repository that this process may not
    write has no publication to fear: there the lock is taken if it is there.

    Raises:
        RepositoryError: somebody else has held it for `timeout_s`.
        OSError: it can be neither made nor opened.
    """
    descriptor, mine = _open_lock(repository / LOCK)
    try:
        _wait_for_lock(descriptor, repository, program, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, timeout_s)
        if mine:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{program}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> tuple[int, bool]:
    """A descriptor of the lock, and whether it can be written."""
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o644), True
    except OSError:
        return os.open(path, os.O_RDONLY), False


def _wait_for_lock(descriptor: int, repository: Path, program: str, kind: int, timeout_s: float) -> None:
    start, told = time.monotonic(), False
    while not _take(descriptor, kind):
        waited = time.monotonic() - start
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another program"
        if waited > timeout_s:
            raise RepositoryError(
                f"{repository}: {holder}, has held its lock for {timeout_s:g} s: wait until that is done, or end it"
            )
        if waited > 1 and not told:
            complain(program, f"waits for {holder}, which has the lock of {repository}")
            told = True
        time.sleep(_LOCK_POLL_S)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def config_file(model: Path, variant: str) -> Path:
    """The configuration that Triton takes for a variant: its own file, or config.pbtxt where there is none.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
    """
    own = model / "configs" / f"{variant}.pbtxt"
    return own if own.is_file() else model / "config.pbtxt"


def fit_variant(models: Sequence[Path], variant: str, cores: int) -> str:
    """For `cpu` the variant `cpu-N` of the most cores that these are enough for, if every model on the CPU has it.

    `cpu` itself is for `SOURCE_CORES`.
    """
    configs = [model / "configs" for model in models if (model / "configs" / "cpu.pbtxt").is_file()]
    if variant != "cpu" or not configs:
        return variant
    sizes = [{path.stem.removeprefix("cpu-") for path in folder.glob("cpu-*.pbtxt")} for folder in configs]
    known = {SOURCE_CORES, *(int(size) for size in set.intersection(*sizes) if size.isdecimal())}
    best = max((size for size in known if size <= cores), default=SOURCE_CORES)
    return variant if best == SOURCE_CORES else f"cpu-{best}"


def instance_count(config: ModelConfig, gpus: int = 1) -> int:
    """Instances of a model on a machine with so many GPUs: of a Python model, the processes.

    A group of KIND_GPU has its count on each GPU that it lists, or on every GPU where it lists none. Source:
    ModelInstanceGroup in Triton's model_config.proto.
    """
    return sum(_group_size(group, gpus) for group in config.instance_group) or 1


def _group_size(group: ModelInstanceGroup, gpus: int) -> int:
    on_gpus = group.kind == ModelInstanceGroup.KIND_GPU
    return (group.count or 1) * ((len(group.gpus) or gpus) if on_gpus else 1)


def needs_gpu(configs: Iterable[ModelConfig]) -> bool:
    """Whether a model of these has instances on a GPU."""
    return any(group.kind == ModelInstanceGroup.KIND_GPU for config in configs for group in config.instance_group)


def _read_config(path: Path) -> ModelConfig:
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is broken ({str(error).splitlines()[0]}): build it again") from error
