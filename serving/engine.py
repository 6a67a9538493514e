"""What an engine does with batches, and the network on a processor: OpenVINO, one batch at a time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.serving.errors import EngineError

PRECISIONS = ("fp32", "bf16", "int8")
MODEL_FILES = {"fp32": "model.onnx", "bf16": "model.onnx", "int8": "model.int8.onnx"}
ENGINES = ("openvino", "tensorrt")
AUTO = "auto"
SMALL_BATCH = 2  # images: fewer callers than this do not fill the cores by themselves


@dataclass(frozen=True)
class EngineConfig:
    """How the network is run. `AUTO` is the fastest precision that was published.

    `threads` is for one batch; 0 means one a core. Batches up to `SMALL_BATCH` images take all cores regardless.
    `profiled` has OpenVINO time each layer, for `Engine.layer_times`.
    TensorRT runs the plan in the precision that it was built in.
    """

    precision: str = AUTO
    threads: int = 0
    max_batch_size: int = 32
    engine: str = "openvino"  # or tensorrt
    profiled: bool = False

    @classmethod
    def from_model_config(cls, config: dict[str, Any]) -> "EngineConfig":
        """Read Triton's model configuration, given as JSON: `max_batch_size` and `parameters`.

        Raises:
            EngineError: an unknown engine or precision, or threads that are not a number.
        """
        given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        precision, threads = given.get("precision", cls.precision), given.get("threads", "0")
        if precision not in (AUTO, *PRECISIONS):
            raise EngineError(f"precision {precision!r} of the model: choose {', '.join((AUTO, *PRECISIONS))}")
        if not threads.isdecimal():
            raise EngineError(f"threads {threads!r} of the model: give a number, 0 for one a core")
        engine = given.get("engine", cls.engine)
        if engine not in ENGINES:
            raise EngineError(f"engine {engine!r} of the model: choose {', '.join(ENGINES)}")
        return cls(precision, int(threads), int(config["max_batch_size"]), engine)


class LayerTime(NamedTuple):
    """A layer of the compiled network: its name, OpenVINO's type of it, and the seconds that a batch takes there."""

    name: str
    kind: str
    seconds: float


@cache
def openvino_core() -> Any:
    """OpenVINO, for as long as the process lives: where the processor has AMX, its plugin sets the stack that signals
    are handled on, and once it is gone the next signal ends the process with SIGSEGV."""
    import openvino  # slow to import, and the rest of this package does without it

    return openvino.Core()


def fastest_published(folder: Path) -> str:
    """The fastest precision that a version's publication let pass and that this processor computes in."""
    manifest = folder / "manifest.json"
    passed = json.loads(manifest.read_text())["precisions"] if manifest.is_file() else ()
    if "int8" in passed and _computes("INT8"):
        return "int8"
    return "bf16" if "bf16" in passed and _computes("BF16") else "fp32"


def precision_hint(precision: str) -> str:
    """What OpenVINO computes the floating point of one of `PRECISIONS` in: f32 or bf16.

    It is always said: left to itself, OpenVINO computes FP32 in BF16 where the processor has that. What INT8 leaves in
    floating point (LRN, pooling, sums between layers) is BF16 there, which takes a tenth of the network's time; where
    it is not, OpenVINO would simulate it. Probabilities are float32 in either: nothing after the last layer is BF16.
    """
    return "bf16" if precision == "bf16" or (precision == "int8" and _computes("BF16")) else "f32"


def _computes(kind: str) -> bool:
    """Whether this processor has instructions for INT8 or BF16."""
    return kind in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class BatchEngine:
    """What every engine does with the requests of a batch. A subclass has `_batch` and `infer`."""

    _batch: np.ndarray  # uint8 [largest batch, height, width, 3]: where the images of several requests are gathered
    description: str

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Uint8 [n, height, width, 3] to probabilities, float32 [n, classes], which later calls leave alone."""
        raise NotImplementedError

    @property
    def input_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self._batch.shape[1]

    def warm_up(self) -> None:
        """Infer the smallest and the largest batch, so that the first caller does not wait for kernels."""
        for size in {1, len(self._batch)}:
            self.infer(self._batch[:size])

    def infer_requests(self, requests: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Infer the images of several requests as one batch, and hand each its rows, as views."""
        ends = np.cumsum([len(images) for images in requests])
        probabilities = self.infer(self._gather(requests, int(ends[-1])))
        return np.split(probabilities, ends[:-1])

    def _gather(self, requests: Sequence[np.ndarray], total: int) -> np.ndarray:
        """One array of all: the request's own where it is alone, else a copy into the array kept for it."""
        if len(requests) == 1:
            return requests[0]
        return np.concatenate(requests, out=self._batch[:total])


class Engine(BatchEngine):
    """A network that OpenVINO has compiled; not for several threads at once.

    Few threads a batch and several batches at a time give the most images a second, because no core waits for
    another at the end of each layer. A caller alone is answered soonest by all cores, so where the two differ,
    the network is compiled for both.
    """

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        """Compile `model.onnx` or `model.int8.onnx` of `folder`.

        Raises:
            EngineError: the file is missing or OpenVINO does not take it.
        """
        precision = fastest_published(folder) if config.precision == AUTO else config.precision
        path = folder / MODEL_FILES[precision]
        if not path.is_file():
            raise EngineError(f"no {path}: publish the model in precision {precision}")
        cores = usable_cores()
        threads = config.threads or cores
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision_hint(precision),
            "ENABLE_CPU_PINNING": False,  # decoding wants the same cores
            "PERF_COUNT": config.profiled,
        }
        try:
            model = openvino_core().read_model(str(path))
            compiled = {
                count: openvino_core().compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": count})
                for count in {threads, cores}
            }
        except RuntimeError as error:
            raise EngineError(f"OpenVINO does not take {path}: {str(error).strip().splitlines()[-1]}") from error
        requests = {count: network.create_infer_request() for count, network in compiled.items()}
        self._small, self._large = requests[cores], requests[threads]
        shape = model.input(0).get_partial_shape()
        self._batch = np.zeros((config.max_batch_size, *(shape[axis].get_length() for axis in (1, 2, 3))), np.uint8)
        self.description = f"{path.name} in {precision}, threads {threads}, {cores} for up to {SMALL_BATCH} images"

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Uint8 [n, height, width, 3] to probabilities, float32 [n, classes], which later calls leave alone."""
        request = self._small if len(images) <= SMALL_BATCH else self._large
        request.infer({0: images}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    def layer_times(self) -> list[LayerTime]:
        """Each layer of the network for batches above `SMALL_BATCH`, in order; it has to be `profiled`.

        The seconds are the mean over every batch since it was compiled, the first ones included, cut to microseconds.
        """
        layers = self._large.get_profiling_info()
        return [
            LayerTime(layer.node_name, layer.node_type, layer.real_time.total_seconds())
            for layer in layers
            if layer.status == layer.Status.EXECUTED
        ]
