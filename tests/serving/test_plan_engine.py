"""The engine of the variant `gpu-python`, with a simulated CUDA and a simulated TensorRT; and, marked, on a GPU.

Which graph serves which batch, and that every request gets its own answers. On a GPU: not run: no GPU.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from alexnet_triton.client import Classifier
from alexnet_triton.client.protocol import Classification
from alexnet_triton.export import tensorrt
from alexnet_triton.export.tensorrt import PlanConfig
from alexnet_triton.serving import Server
from alexnet_triton.serving.engine import EngineConfig
from alexnet_triton.serving.errors import EngineError
from alexnet_triton.serving.plan_engine import GRAPH_SIZES, Device, PlanEngine, load_engine
from alexnet_triton.serving.repository import Repository
from main_job import ROOT
from tests.serving.simulated_cuda import Driver, Runtime
from tests.serving.tiny import CLASSES, SIZE, answer, build_repository, jpeg, network, running_server

MODELS = ("alexnet", "preprocess")
CONFIG = EngineConfig(max_batch_size=32, engine="tensorrt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version's folder, whose "plan" is the tests' small network as ONNX."""
    (tmp_path / "model.plan").write_bytes(network().SerializeToString())
    onnx.save(network(), tmp_path / "model.onnx")
    return tmp_path


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_answers_are_those_of_the_network_and_each_batch_runs_in_the_smallest_graph(folder: Path) -> None:
    driver = Driver()
    runtime = Runtime(driver)
    engine = PlanEngine(folder, CONFIG, Device(0, driver), runtime)
    expected = load_engine(folder, EngineConfig(max_batch_size=32))
    assert tuple(engine.graphs) == GRAPH_SIZES
    assert runtime.sizes == list(GRAPH_SIZES)  # each once before it is captured
    for count, graph in ((1, 1), (2, 2), (3, 4), (7, 8), (9, 12), (32, 32), (5, 8)):
        runtime.sizes.clear()
        driver.copied_bytes = 0
        images = pixels(count)
        np.testing.assert_allclose(engine.infer(images), expected.infer(images), atol=1e-3)
        assert runtime.sizes == [graph]
        assert driver.copied_bytes == images.nbytes + 4 * count * CLASSES  # not what the graph holds beyond the batch
    assert driver.calls.count("cuStreamCreate") == 1
    assert driver.calls.count("cuMemHostAlloc") == 2


def test_requests_have_their_own_rows_and_later_batches_leave_them_alone(folder: Path) -> None:
    driver = Driver()
    engine, parts = PlanEngine(folder, CONFIG, Device(0, driver), Runtime(driver)), [pixels(n) for n in (1, 3, 2)]
    first = engine.infer_requests(parts)
    kept = [rows.copy() for rows in first]
    engine.warm_up()
    for rows, before, images in zip(first, kept, parts, strict=True):
        assert np.array_equal(rows, before)
        np.testing.assert_allclose(rows, engine.infer(images), atol=1e-6)


def test_a_smaller_profile_or_batch_has_its_own_largest_graph(folder: Path) -> None:
    for largest, config in ((6, CONFIG), (32, EngineConfig(max_batch_size=6, engine="tensorrt"))):
        driver = Driver()
        engine = PlanEngine(folder, config, Device(0, driver), Runtime(driver, largest))
        assert tuple(engine.graphs) == (1, 2, 4, 6)
        assert engine.infer(pixels(6)).shape == (6, CLASSES)


def test_nothing_waits_or_allocates_while_a_graph_is_captured(folder: Path) -> None:
    """Else the first refused call is named, not the capture that it ended; the next capture is whole."""
    driver = Driver()
    device = Device(0, driver)
    for work in (device.synchronize, lambda: device.allocate(8)):
        with pytest.raises(EngineError, match=r"cu(StreamSynchronize|MemAlloc) failed with .*UNSUPPORTED"):
            device.capture(work)
        assert driver.calls[-1] == "cuStreamEndCapture"
    assert PlanEngine(folder, CONFIG, device, Runtime(driver)).infer(pixels(3)).shape == (3, CLASSES)


def test_copies_in_the_stream_are_of_page_locked_memory() -> None:
    driver = Driver()
    device = Device(0, driver)
    address, locked = device.allocate(8), device.pinned((8,), np.uint8)
    device.copy_in(address, locked)
    device.copy_out(locked, address)
    with pytest.raises(EngineError, match="cuMemcpyHtoDAsync failed with CUDA_ERROR_INVALID_VALUE"):
        device.copy_in(address, np.zeros(8, np.uint8))


def test_what_cannot_be_loaded_is_one_line(folder: Path, tmp_path: Path) -> None:
    driver = Driver(memory_bytes=1000)
    with pytest.raises(EngineError, match="CUDA: cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY; see what nvidia-smi"):
        PlanEngine(folder, CONFIG, Device(0, driver), Runtime(driver))
    (folder / "model.plan").write_bytes(b"")
    with pytest.raises(EngineError, match="TensorRT simulated cannot load the plan"):
        PlanEngine(folder, CONFIG, Device(0, Driver()), Runtime(driver))
    (folder / "model.plan").unlink()
    with pytest.raises(EngineError, match=r"no .*model\.plan: build a plan with alexnet-triton build-engine"):
        PlanEngine(folder, CONFIG, Device(0, Driver()), Runtime(driver))


def build_plan(folder: Path) -> None:
    """The tests' small network as TensorRT's own plan for this GPU."""
    onnx.save(network(), folder / "source.onnx")
    built = tensorrt.build(tensorrt.load(), folder / "source.onnx", PlanConfig(), None)
    (folder / "model.plan").write_bytes(built.plan)


@pytest.mark.gpu
def test_on_a_gpu_every_graph_answers_as_the_network_does(folder: Path) -> None:
    build_plan(folder)
    engine, expected = PlanEngine(folder, CONFIG, Device()), load_engine(folder, EngineConfig(max_batch_size=32))
    assert tuple(engine.graphs) == GRAPH_SIZES
    for count in (32, 1, 7, 5, 17):
        images = pixels(count)
        np.testing.assert_allclose(engine.infer(images), expected.infer(images), atol=0.02)


@pytest.mark.gpu
def test_on_a_gpu_the_embedded_triton_serves_a_plan(tmp_path: Path) -> None:
    repository = build_repository(tmp_path / "model_repository")
    build_plan(repository / "alexnet/1")
    with running_server(repository, variant="gpu-python", log=tmp_path / "triton.log") as running:
        answered_by_the_network(running)


def test_an_engine_that_is_none() -> None:
    config = {"max_batch_size": 32, "parameters": {"engine": {"string_value": "onnx"}}}
    with pytest.raises(EngineError, match="engine 'onnx' of the model: choose openvino, tensorrt"):
        EngineConfig.from_model_config(config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Triton on the variant `gpu-python`, with its instances on the processor and a simulated CUDA in them."""
    repository = build_repository(tmp_path_factory.mktemp("built") / "model_repository")
    for model in MODELS:
        path = Repository.open(repository, "gpu-python").config_file(model)
        config = text_format.Parse(path.read_text(), ModelConfig())
        config.instance_group[0].kind = ModelInstanceGroup.KIND_CPU
        path.write_text(text_format.MessageToString(config))
    version = repository / "alexnet/1"
    (version / "model.plan").write_bytes(network().SerializeToString())
    simulate = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.serving import simulated_cuda\n"
    model = (version / "model.py").read_text()
    (version / "model.py").write_text(f"{simulate}simulated_cuda.install()\n{model}")
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with running_server(repository, variant="gpu-python", log=log, start_timeout_s=120) as running:
        assert "alexnet version 1: tensorrt, model.plan in TensorRT simulated, graphs of 1, 2, 4, 8," in log.read_text()
        yield running


def test_served_by_a_real_triton_with_a_simulated_gpu(server: Server) -> None:
    answered_by_the_network(server)


def answered_by_the_network(server: Server) -> None:
    """Batches are formed, and every image has its own answer."""
    images = [jpeg(seed) for seed in range(24)]
    with Classifier(f"grpc://{server.grpc_address}", concurrency=24) as classifier:
        for image, found in zip(images, classifier.classify_many(images), strict=True):
            expected = answer(network(), image)
            assert isinstance(found, Classification)
            assert found.top[0].index == expected.argmax()
            assert found.top[0].probability == pytest.approx(expected.max(), abs=0.02)
    server.check_health(5.0, 10.0)
