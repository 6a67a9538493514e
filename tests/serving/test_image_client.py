"""NVIDIA's image_client.py finds what it needs: the same requests, in the same order, over both protocols.

It reads a model's metadata and configuration, learns from `format` how to lay out its pixels, and asks for classes:
https://github.com/triton-inference-server/client#image-classification-example-application
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from alexnet_triton.imaging import decode
from alexnet_triton.serving import Server
from tests.serving.tiny import LABELS, SIZE, answer, jpeg, network

MODEL, CLASSES = "alexnet", 3
LIBRARIES: dict[str, ModuleType] = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ModuleType:
    return LIBRARIES[request.param]


@pytest.fixture
def client(library: ModuleType, tiny_server: Server) -> Iterator[Any]:
    address = tiny_server.grpc_address if library is tritonclient.grpc else tiny_server.http_address
    with library.InferenceServerClient(address) as opened:
        yield opened


def metadata(client: Any) -> dict[str, Any]:
    asked = {"as_json": True} if isinstance(client, tritonclient.grpc.InferenceServerClient) else {}
    return client.get_model_metadata(MODEL, **asked)


def config(client: Any) -> dict[str, Any]:
    """Over gRPC the configuration stands inside the answer."""
    if isinstance(client, tritonclient.grpc.InferenceServerClient):
        return client.get_model_config(MODEL, as_json=True)["config"]
    return client.get_model_config(MODEL)


def test_the_metadata_has_one_input_of_three_dimensions_and_one_vector_of_floats(client: Any) -> None:
    (taken,), (given,) = metadata(client)["inputs"], metadata(client)["outputs"]
    assert (taken["name"], taken["datatype"], list(map(int, taken["shape"]))) == (
        "images",
        "UINT8",
        [-1, SIZE, SIZE, 3],
    )
    assert (given["datatype"], list(map(int, given["shape"]))) == ("FP32", [-1, len(LABELS)])


def test_the_configuration_tells_the_layout_of_the_pixels(client: Any) -> None:
    (taken,) = config(client)["input"]
    assert taken["format"] == "FORMAT_NHWC"
    assert list(map(int, taken["dims"])) == [SIZE, SIZE, 3]
    assert config(client)["max_batch_size"] > 1


def test_pixels_are_answered_with_classes(client: Any, library: ModuleType) -> None:
    files = [jpeg(seed) for seed in range(2)]
    pixels = np.stack([decode(file, SIZE) for file in files])
    images = library.InferInput("images", pixels.shape, "UINT8")
    images.set_data_from_numpy(pixels)
    output = library.InferRequestedOutput("probabilities", class_count=CLASSES)
    classes = client.infer(MODEL, [images], outputs=[output]).as_numpy("probabilities")
    assert classes.shape == (len(files), CLASSES)
    for row, file in zip(classes, files, strict=True):
        expected = answer(network(), file)
        best = np.argsort(-expected)[:CLASSES]
        values, indices, labels = zip(*(each.decode().split(":") for each in row), strict=True)
        assert list(map(int, indices)) == best.tolist()
        assert list(labels) == [LABELS[index] for index in best]
        assert list(map(float, values)) == pytest.approx(expected[best].tolist(), abs=1e-4)
