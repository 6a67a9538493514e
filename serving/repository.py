"""The built repository: what is in it, and whether it can be served at all."""

import json
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.serving.errors import RepositoryError

VARIANTS = {"gpu": "config.pbtxt", "cpu": "configs/cpu.pbtxt", "onnxruntime": "configs/onnxruntime.pbtxt"}
PROBABILITY_TOLERANCE = 0.05


@dataclass(frozen=True)
class ReferenceAnswer:
    """An image, and the class and probability that a healthy `classify` answers for it."""

    version: str
    image: bytes
    index: int
    label: str
    probability: float

    def agrees(self, index: int, probability: float) -> bool:
        return index == self.index and abs(probability - self.probability) <= PROBABILITY_TOLERANCE


@dataclass(frozen=True)
class Repository:
    """A built repository. Opening it reads every configuration of the variant."""

    path: Path
    variant: str
    configs: dict[str, ModelConfig]

    @classmethod
    def open(cls, path: str | Path, variant: str) -> "Repository":
        """Check a repository and read its configurations.

        Raises:
            RepositoryError: it is missing, empty, unreadable, or a configuration is broken or absent.
        """
        path = Path(path).absolute()
        try:
            models = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
            configs = {model.name: _read_config(config_file(model, variant)) for model in models}
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

    def reference_answer(self, version: str) -> ReferenceAnswer:
        """The reference image of a version of `classify`, and its answer.

        Raises:
            RepositoryError: they are not there or not readable.
        """
        folder = self.path / "classify" / version
        try:
            answer = json.loads((folder / "reference.json").read_text())
            image = (folder / "reference.jpg").read_bytes()
            return ReferenceAnswer(version, image, int(answer["index"]), answer["label"], float(answer["probability"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RepositoryError(f"no reference answer in {folder} ({error}): publish the model again") from error


def config_file(model: Path, variant: str) -> Path:
    """The configuration that Triton takes for a variant: its own file, or config.pbtxt where there is none.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
    """
    own = model / VARIANTS[variant]
    return own if own.is_file() else model / VARIANTS["gpu"]


def instance_count(config: ModelConfig) -> int:
    """Instances of a model: of a Python model, the processes."""
    return sum(group.count or 1 for group in config.instance_group) or 1


def _read_config(path: Path) -> ModelConfig:
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is broken ({str(error).splitlines()[0]}): build it again") from error
