"""What an engine does with batches, and the network on a processor: OpenVINO, one batch at a time."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.serving.errors import EngineError

PRECISIONS = ("fp32", "bf16", "int8")
MODEL_FILES = {"fp32": "model.onnx", "bf16": "model.onnx", "int8": "model.int8.onnx"}
ENGINES = ("openvino", "tensorrt")
AUTO = "auto"
PIXEL_SCALE = np.float32(2)  # a factor of 1 would go, and the convolution with it to floating point
TINY = np.float32(1e-30)  # the least scale: a channel may have no weights but 0
TO_PLANES = [0, 3, 1, 2]  # the order of axes: [N, S, S, 3] to [N, 3, S, S]
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
    return _import_openvino().Core()


def _import_openvino() -> ModuleType:
    """OpenVINO without its converter of other frameworks' models, which its `__init__` passes over where it is missing.

    The converter takes a third of the import, loads an HTTP client for telemetry, and has no use here.
    """
    converter = "openvino.tools"
    if converter in sys.modules:
        return import_module("openvino")
    sys.modules[converter] = None  # type: ignore[assignment]  # an import of it fails
    try:
        return import_module("openvino")  # slow, and the rest of this package does without it
    finally:
        del sys.modules[converter]


def fastest_published(folder: Path) -> str:
    """The fastest precision that a version's publication let pass and that this processor computes in."""
    manifest = folder / "manifest.json"
    passed = json.loads(manifest.read_text())["precisions"] if manifest.is_file() else ()
    if "int8" in passed and _computes("INT8"):
        return "int8"
    return "bf16" if "bf16" in passed and _computes("BF16") else "fp32"


def precision_hint(network: Any, precision: str) -> str:
    """What OpenVINO computes a network's floating point in, in one of `PRECISIONS`: f32 or bf16.

    It is always said: left to itself, OpenVINO computes FP32 in BF16 where the processor has that. What INT8 leaves in
    floating point (LRN, pooling, sums between layers) is BF16 there, which takes a tenth of the network's time; where
    it is not, OpenVINO would simulate it. Where convolutions are left, as EfficientNet's depthwise ones, it is FP32: in
    BF16 they cost two of a hundred answers. Probabilities are float32 in either: nothing after the last layer is BF16.
    """
    if precision == "int8" and _computes("BF16") and all(map(_is_quantized, _layers(network))):
        return "bf16"
    return "bf16" if precision == "bf16" else "f32"


def _layers(network: Any) -> list[Any]:
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    return [node for node in network.get_ordered_ops() if node.get_type_name() in kinds]


def _is_quantized(layer: Any) -> bool:
    """Whether a layer's weights are 8-bit numbers."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() != "Constant" and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_output_element_type(0).get_type_name() == "i8"


def read_network(path: Path, precision: str) -> Any:
    """A network for OpenVINO to compile; one in INT8 with the normalisation of pixels in its first convolution.

    Where sums saturate, weights have 7 bits.

    Raises:
        RuntimeError: OpenVINO cannot read it.
    """
    model = openvino_core().read_model(str(path))
    convolution = next((node for node in _layers(model) if node.get_type_name() == "Convolution"), None)
    if precision == "int8" and convolution is not None and (nodes := _find_normalization(convolution)):
        _fold_normalization(convolution, nodes)
        model.validate_nodes_and_infer_types()
    if precision == "int8" and sums_saturate():
        for layer in filter(_is_quantized, _layers(model)):
            _halve_weights(layer)
    return model


@cache
def sums_saturate() -> bool:
    """Whether this processor adds two products of 8-bit numbers in 16 bits, as x86 without VNNI does (vpmaddubsw)."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return bool(flags) and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)


def _halve_weights(layer: Any) -> None:
    """Give a layer's weights 7 bits and twice the scale, in place: two products with 255 then fit 16 bits.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "reduce_range".
    """
    from openvino import opset13 as operators

    node = scaled = layer.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        scaled = node if node.get_type_name() == "Multiply" else scaled
        above, node = node, node.input_value(0).get_node()
    levels = np.rint(node.data.astype(np.float32) / 2).astype(np.int8)
    above.input(0).replace_source_output(operators.constant(levels).output(0))
    scale = operators.multiply(scaled.input_value(1), operators.constant(np.float32(2)))
    scaled.input(1).replace_source_output(scale.output(0))


def _find_normalization(convolution: Any) -> list[Any]:
    """The nodes from the pixels to what is quantised for a convolution, in order.

    There are none where they do more than `_affine` knows, or where zeros are padded to what they give.
    """
    above, attributes = [], convolution.get_attributes()
    node = convolution.input_value(0).get_node()
    while node.get_type_name() != "Parameter":
        above.append(node)
        node = node.input_value(0).get_node()
    kinds = [node.get_type_name() for node in above]
    if "FakeQuantize" not in kinds or any(attributes["pads_begin"]) or any(attributes["pads_end"]):
        return []
    nodes = above[kinds.index("FakeQuantize") + 1 :][::-1]
    planes = [node for node in nodes if node.get_type_name() == "Transpose"]
    return nodes if len(planes) == 1 and all(map(_is_normalizing, nodes)) else []


def _is_normalizing(node: Any) -> bool:
    kind = node.get_type_name()
    if kind == "Convert":
        return True
    second = node.input_value(1).get_node() if kind in ("Transpose", "Subtract", "Divide") else None
    if second is None or second.get_type_name() != "Constant":
        return False
    return kind != "Transpose" or second.data.tolist() == TO_PLANES


def _fold_normalization(convolution: Any, nodes: Sequence[Any]) -> None:
    """Make a convolution of quantised (x - mean) / deviation one of pixels x, which are INT8's as they are, in place.

    What OpenVINO takes for dequantisation stands before it, the factor `PIXEL_SCALE`, which the weights take back.
    """
    import openvino
    from openvino import opset13 as operators

    gain, offset = _affine(nodes)
    network = openvino.Model([convolution.input_value(1)], [])
    weights = openvino_core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
    weights = weights * gain[:, None, None]
    scale = np.maximum(np.abs(weights).max((1, 2, 3), keepdims=True) / 127, TINY)
    levels = np.rint(weights / scale).astype(np.int8)
    # Of the rounded weights: so their error multiplies x - mean, as before, and not x.
    bias = (levels * scale * (offset / gain)[:, None, None]).sum((1, 2, 3))
    pixels = operators.multiply(operators.convert(nodes[0].input_value(0), "f32"), operators.constant(PIXEL_SCALE))
    planes = operators.transpose(pixels, operators.constant(np.array(TO_PLANES)))
    convolution.input(0).replace_source_output(planes.output(0))
    rounded = operators.multiply(
        operators.convert(operators.constant(levels), "f32"), operators.constant(scale / PIXEL_SCALE)
    )
    convolution.input(1).replace_source_output(rounded.output(0))
    _add(convolution, operators.constant(bias.reshape(1, -1, 1, 1)))


def _add(node: Any, constant: Any) -> None:
    """Have a node's readers read it with a constant added."""
    from openvino import opset13 as operators

    readers = node.output(0).get_target_inputs()
    added = operators.add(node, constant)
    for reader in readers:
        reader.replace_source_output(added.output(0))


def _affine(nodes: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of each colour, float32 [3], that nodes which are normalizing come to."""
    gain, offset = np.ones(3, np.float32), np.zeros(3, np.float32)
    for node in nodes:
        if node.get_type_name() == "Subtract":
            offset = offset - node.input_value(1).get_node().data.ravel()
        elif node.get_type_name() == "Divide":
            divisor = node.input_value(1).get_node().data.ravel()
            gain, offset = gain / divisor, offset / divisor
    return gain, offset


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
            "ENABLE_CPU_PINNING": False,  # decoding wants the same cores
            "PERF_COUNT": config.profiled,
        }
        try:
            model = read_network(path, precision)
            settings["INFERENCE_PRECISION_HINT"] = precision_hint(model, precision)
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
