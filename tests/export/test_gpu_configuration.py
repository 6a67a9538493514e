"""The published GPU configurations, field by field, against what Triton and its TensorRT backend accept.

TensorRT-RTX's parser and builder, which need no GPU, describe the plan; the backend's rules are those of its source
(`tensorrt_backend.py`). Loading a plan in Triton: not run: no GPU.
"""

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from tritonclient.grpc.model_config_pb2 import (
    TYPE_FP16,
    TYPE_FP32,
    TYPE_INT8,
    TYPE_STRING,
    TYPE_UINT8,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelRateLimiter,
)

from alexnet_triton.export.build_engine import build_engine
from alexnet_triton.export.repository import Network
from alexnet_triton.export.tensorrt import PlanConfig
from alexnet_triton.serving.repository import Repository
from main_job import ROOT
from tests.export.tensorrt_backend import Plan, faults, fields
from tests.serving.tiny import network, publication, publish

# Every field of the network's configuration has a rule: a new one fails here until it has been looked up.
KNOWN = {
    *("name", "platform", "max_batch_size", "version_policy.all"),
    *("input.name", "input.data_type", "input.format", "input.dims"),
    *("output.name", "output.data_type", "output.dims", "output.label_filename"),
    *("instance_group.count", "instance_group.kind"),
    *("optimization.cuda.graphs", "optimization.cuda.graph_spec.batch_size", "optimization.cuda.graph_spec.input"),
    *(
        "optimization.cuda.graph_spec.graph_lower_bound.batch_size",
        "optimization.cuda.graph_spec.graph_lower_bound.input",
    ),
    *("dynamic_batching.priority_levels", "dynamic_batching.default_priority_level"),
    *(f"dynamic_batching.default_queue_policy.{name}" for name in ("default_timeout_microseconds",)),
    *(f"dynamic_batching.default_queue_policy.{name}" for name in ("allow_timeout_override", "max_queue_size")),
    *("model_warmup.name", "model_warmup.batch_size", "model_warmup.inputs"),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("plan")
    onnx.save(network(), folder / "model.onnx")
    config = PlanConfig(builder_level=0)
    return Plan.of(build_engine(folder / "model.onnx", folder / "model.plan", config, check=True))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    folder = tmp_path_factory.mktemp("built")
    publish(folder / "model_repository", publication(folder))
    return Repository.open(folder / "model_repository", "gpu").by_source_name


@pytest.fixture
def config(published: dict[str, ModelConfig]) -> ModelConfig:
    """The network's, for a test to change."""
    copy = ModelConfig()
    copy.CopyFrom(published["alexnet"])
    return copy


def test_the_backend_takes_what_is_published(config: ModelConfig, plan: Plan) -> None:
    assert faults(config, plan) == []
    assert fields(config) == KNOWN


@pytest.mark.parametrize("largest", [1, 3, 8, 17, 32])
def test_whatever_the_largest_batch_every_batch_has_a_graph(largest: int, tmp_path: Path, plan: Plan) -> None:
    what = publication(tmp_path)
    given = Network(what.network.name, what.network.classes, what.network.size, largest)
    publish(
        tmp_path / "built", type(what)(given, *(getattr(what, name) for name in ("labels", "artefacts", "references")))
    )
    found = Repository.open(tmp_path / "built", "gpu").configs["alexnet"]
    assert found.max_batch_size == largest
    assert faults(found, plan) == []


def spec(config: ModelConfig, batch_size: int):
    return next(each for each in config.optimization.cuda.graph_spec if each.batch_size == batch_size)


def set_dim(shape, index: int, value: int) -> None:
    shape.dim[index] = value


WRONG: dict[str, tuple[Callable[[ModelConfig], object], str]] = {
    # the file and where it runs
    "platform": (lambda c: setattr(c, "platform", "onnxruntime_onnx"), "platform"),
    "backend": (lambda c: setattr(c, "backend", "python"), "platform"),
    "file": (lambda c: setattr(c, "default_model_filename", "model.onnx"), "default_model_filename"),
    "processor": (lambda c: setattr(c.instance_group[0], "kind", ModelInstanceGroup.KIND_CPU), "only GPUs"),
    "any device": (lambda c: setattr(c.instance_group[0], "kind", ModelInstanceGroup.KIND_AUTO), "only GPUs"),
    "no instances": (lambda c: c.ClearField("instance_group"), "no instance_group"),
    "profile": (lambda c: c.instance_group[0].profile.append("1"), "profile 1"),
    # tensors
    "input's name": (lambda c: setattr(c.input[0], "name", "pixels"), "is not the plan's"),
    "no input": (lambda c: c.ClearField("input"), "is not configured"),
    "another input": (lambda c: c.input.add(name="mask", data_type=TYPE_UINT8, dims=[1]), "mask is not the plan's"),
    "output's name": (lambda c: setattr(c.output[0], "name", "logits"), "logits is not the plan's"),
    "input's type": (lambda c: setattr(c.input[0], "data_type", TYPE_INT8), "images is TYPE_INT8, and TYPE_UINT8"),
    "files": (lambda c: setattr(c.input[0], "data_type", TYPE_STRING), "images is TYPE_STRING"),
    "output's type": (lambda c: setattr(c.output[0], "data_type", TYPE_FP16), "probabilities is TYPE_FP16"),
    "size": (lambda c: c.input[0].dims.__setitem__(0, 224), "images has shape [-1, 224, 227, 3]"),
    "planes first": (lambda c: c.input[0].dims.__setitem__(slice(0, 3), [3, 227, 227]), "images has shape"),
    "rank": (lambda c: c.input[0].dims.append(1), "images has shape"),
    "reshape": (lambda c: c.input[0].reshape.shape.extend([154587]), "images has shape [-1, 154587]"),
    "classes": (lambda c: c.output[0].dims.__setitem__(0, 1000), "probabilities has shape [-1, 1000]"),
    "shape tensor": (lambda c: setattr(c.input[0], "is_shape_tensor", True), "marked as a shape tensor"),
    "non-linear": (lambda c: setattr(c.input[0], "is_non_linear_format_io", True), "non-linear"),
    # batches
    "no batching": (lambda c: setattr(c, "max_batch_size", 0), "images has shape [227, 227, 3]"),
    "larger batches": (lambda c: setattr(c, "max_batch_size", 64), "max_batch_size 64 with a profile of 1 to 32"),
    # CUDA graphs
    "no graphs": (lambda c: setattr(c.optimization.cuda, "graphs", False), "no CUDA graphs"),
    "a graph less": (lambda c: c.optimization.cuda.graph_spec.pop(3), "no graph for batches of 5, 6, 7, 8"),
    "default graphs": (lambda c: c.optimization.cuda.ClearField("graph_spec"), "no graph for batches of 1, 2"),
    "graph too large": (lambda c: setattr(spec(c, 32), "batch_size", 33), "batches 25 to 33, of at most 32"),
    "graph of none": (lambda c: setattr(spec(c, 1), "batch_size", 0), "batches 0 to 0"),
    "bound above": (lambda c: setattr(spec(c, 8).graph_lower_bound, "batch_size", 9), "batches 9 to 8"),
    "bound of none": (lambda c: setattr(spec(c, 8).graph_lower_bound, "batch_size", 0), "batches 0 to 8"),
    "bound too high": (
        lambda c: setattr(spec(c, 8).graph_lower_bound, "batch_size", 7),
        "no graph for batches of 5, 6",
    ),
    "bound without shape": (lambda c: spec(c, 8).graph_lower_bound.ClearField("input"), "lower bound [] of"),
    "bound of shape": (lambda c: set_dim(spec(c, 8).graph_lower_bound.input["images"], 0, 228), "lower bound [228"),
    "bound below": (lambda c: set_dim(spec(c, 8).graph_lower_bound.input["images"], 0, -1), "lower bound [-1"),
    "graph's shape": (lambda c: set_dim(spec(c, 16).input["images"], 1, 256), "is not in the profile"),
    "graph's rank": (lambda c: spec(c, 16).input["images"].dim.pop(), "is not in the profile"),
    "graph's input": (lambda c: spec(c, 4).ClearField("input"), "shapes of nothing"),
    "graph's other input": (lambda c: spec(c, 4).input["mask"].dim.append(1), "graph of 4: shapes of"),
    # warm-ups and parameters
    "warm-up too large": (lambda c: setattr(c.model_warmup[-1], "batch_size", 64), "warm-up of 64"),
    "warm-up's type": (lambda c: setattr(c.model_warmup[0].inputs["images"], "data_type", TYPE_FP32), "warm-up of 1"),
    "warm-up's shape": (lambda c: c.model_warmup[0].inputs["images"].dims.append(1), "warm-up of 1"),
    "strategy": (
        lambda c: setattr(c.parameters["execution_context_allocation_strategy"], "string_value", "DYNAMIC"),
        "allocation_strategy DYNAMIC",
    ),
    "several GPUs": (lambda c: setattr(c.parameters["enable_multi_device"], "string_value", "true"), "multi_device"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_noticed(
    change: Callable[[ModelConfig], object], says: str, config: ModelConfig, plan: Plan
) -> None:
    change(config)
    assert any(says in fault for fault in faults(config, plan)), faults(config, plan)


def test_a_field_that_nobody_looked_up_is_noticed(config: ModelConfig) -> None:
    config.optimization.cuda.output_copy_stream = True
    config.instance_group[0].rate_limiter.resources.append(ModelRateLimiter.Resource(name="R1", count=4))
    assert {"optimization.cuda.output_copy_stream", "instance_group.rate_limiter.resources.name"} <= fields(
        config
    ) - KNOWN


def test_the_decoder_and_the_ensemble_fit_the_network(published: dict[str, ModelConfig]) -> None:
    decoder, ensemble = published["preprocess"], published["classify"]
    ((images,), (pixels,)) = decoder.output, published["alexnet"].input
    assert (images.name, images.data_type, list(images.dims)) == (pixels.name, pixels.data_type, list(pixels.dims))
    assert pixels.format == ModelInput.FORMAT_NHWC
    assert decoder.parameters["decoder"].string_value == "dali"
    assert [group.kind for group in decoder.instance_group] == [ModelInstanceGroup.KIND_GPU]
    assert ensemble.max_batch_size <= min(decoder.max_batch_size, published["alexnet"].max_batch_size)
    assert ensemble.platform == "ensemble"
    assert not ensemble.instance_group


def test_the_network_in_python_takes_what_the_backend_takes(tmp_path: Path, published: dict[str, ModelConfig]) -> None:
    """The same tensors, batches, queue and GPUs, so that callers need not know which of them answers."""
    publish(tmp_path / "built", publication(tmp_path))
    python, backend = Repository.open(tmp_path / "built", "gpu-python").configs["alexnet"], published["alexnet"]
    for name in ("name", "max_batch_size", "input", "output", "instance_group", "dynamic_batching", "version_policy"):
        assert getattr(python, name) == getattr(backend, name), name
    assert (python.backend, python.parameters["engine"].string_value) == ("python", "tensorrt")


def test_every_file_that_the_claims_name_is_there() -> None:
    text = (ROOT / "docs/gpu/claims.md").read_text()
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ") and line.count("|") > 4]
    named = {name for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
