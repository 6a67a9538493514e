"""NVIDIA DALI as the decoder of `preprocess`, on a processor; on a GPU: not run: no GPU."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.client import Classifier
from alexnet_triton.client.errors import BadImage
from alexnet_triton.client.protocol import Classification
from alexnet_triton.common.provenance import installed_gpus
from alexnet_triton.imaging import decode
from alexnet_triton.serving import Server
from alexnet_triton.serving.pixels import DaliDecoder, decode_requests, make_decoder
from alexnet_triton.serving.repository import Repository
from tests.serving.tiny import SIZE, answer, build_repository, jpeg, network, running_server

CLOSE = 1.5  # of 255, on average: DALI decodes at full size, `imaging` at a reduced scale where that is enough


def png() -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(3))).save(buffer, "PNG")
    return buffer.getvalue()


def turned() -> bytes:
    """Upright by EXIF alone."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.open(io.BytesIO(jpeg(4))).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def broken() -> bytes:
    """A JPEG to its headers and its end, with no image between."""
    whole = jpeg(5)
    return whole[: whole.index(b"\xff\xda")] + b"\xff\xd9"


def request(*files: bytes) -> np.ndarray:
    return np.array(files, dtype=object).reshape(-1, 1)


def assert_close(result: np.ndarray | str, encoded: bytes) -> None:
    """The pixels of one image are those of `imaging`, nearly."""
    assert isinstance(result, np.ndarray), result
    assert (result.dtype, result.shape) == (np.uint8, (1, SIZE, SIZE, 3))
    assert np.abs(result[0].astype(int) - decode(encoded, SIZE)).mean() < CLOSE


@pytest.fixture(scope="module")
def decoder() -> DaliDecoder:
    return DaliDecoder(SIZE, max_batch_size=8, device_id=None)


@pytest.mark.parametrize(
    "encoded",
    [jpeg(1), jpeg(1, 97, 301), jpeg(2, 1600, 1200), turned()],
    ids=["landscape", "portrait", "scaled in decoding", "turned"],
)
def test_pixels_are_those_of_imaging(decoder: DaliDecoder, encoded: bytes) -> None:
    (pixels,) = decoder.decode_requests([request(encoded)])
    assert_close(pixels, encoded)


def test_grey_becomes_three_channels(decoder: DaliDecoder) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(1))).convert("L").save(buffer, "JPEG")
    (pixels,) = decoder.decode_requests([request(buffer.getvalue())])
    assert_close(pixels, buffer.getvalue())


def test_each_request_has_its_own_pixels(decoder: DaliDecoder) -> None:
    """Whole JPEGs between others, one request of several."""
    requests = [request(jpeg(1)), request(png()), request(jpeg(2), jpeg(3)), request(b"text"), request(jpeg(4))]
    expected = decode_requests(requests, SIZE)
    for mine, other in zip(decoder.decode_requests(requests), expected, strict=True):
        if isinstance(other, str):
            assert mine == other
        else:
            assert isinstance(mine, np.ndarray)
            assert mine.shape == other.shape
            assert np.abs(np.subtract(mine, other, dtype=int)).mean() < CLOSE


@pytest.mark.parametrize("bad", [broken(), jpeg(1)[:-200], b""], ids=["broken", "truncated", "empty"])
def test_a_damaged_file_is_refused_alone(decoder: DaliDecoder, bad: bytes) -> None:
    good, refused = decoder.decode_requests([request(jpeg(1)), request(bad)])
    assert refused == decode_requests([request(bad)], SIZE)[0]
    assert isinstance(refused, str)
    assert_close(good, jpeg(1))
    (after,) = decoder.decode_requests([request(jpeg(2))])
    assert_close(after, jpeg(2))


@pytest.mark.skipif(bool(installed_gpus()), reason="this machine has a GPU")
def test_where_dali_does_not_start_imaging_decodes_and_says_so() -> None:
    decoder = make_decoder("dali", SIZE, 8, device_id=0)  # there is no GPU 0
    assert decoder.name == "imaging"
    assert re.fullmatch(r"DALI does not start \(.+\): imaging decodes, on the processor", decoder.fault)
    (pixels,) = decoder.decode([request(jpeg(1))])
    assert_close(pixels, jpeg(1))


@pytest.mark.gpu
def test_on_a_gpu_dali_decodes_as_imaging_does() -> None:
    decoder = make_decoder("dali", SIZE, 8, device_id=0)
    assert (decoder.name, decoder.fault) == ("dali", "")
    files = [jpeg(seed) for seed in range(8)] + [turned(), png(), broken()]
    results = decoder.decode([request(file) for file in files])
    for result, file in zip(results[:-1], files[:-1], strict=True):
        assert_close(result, file)
    assert isinstance(results[-1], str)


def test_a_server_whose_dali_cannot_be_imported_answers_and_says_so(tmp_path: Path) -> None:
    """Such as DALI for another CUDA; here `model.py` hides it."""
    repository, log = with_dali(build_repository(tmp_path / "model_repository")), tmp_path / "triton.log"
    model = repository / "preprocess/1/model.py"
    hidden = 'import sys\nsys.modules["nvidia.dali"] = None\n'
    model.write_text(hidden + model.read_text())
    with running_server(repository, cores=2, log=log, start_timeout_s=120) as running:
        running.check()
    lines = [line for line in log.read_text().splitlines() if "DALI does not start" in line]
    assert len(lines) == 2  # one an instance
    assert all("nvidia.dali" in line and line.endswith('imaging decodes, on the processor"') for line in lines)


def test_a_decoder_that_is_none() -> None:
    with pytest.raises(ValueError, match="'decoder' is 'opencv': give imaging or dali"):
        make_decoder("opencv", SIZE, 8, None)


def with_dali(repository: Path) -> Path:
    """The repository, with DALI as the decoder of the variant `cpu`."""
    path = Repository.open(repository, "cpu").config_file("preprocess")
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.parameters["decoder"].string_value = "dali"
    path.write_text(text_format.MessageToString(config))
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = with_dali(build_repository(tmp_path_factory.mktemp("dali") / "model_repository"))
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with running_server(repository, cores=2, log=log, start_timeout_s=120) as running:
        assert "preprocess: dali on the processor" in log.read_text()
        yield running


def test_served(server: Server) -> None:
    images = [jpeg(seed) for seed in range(8)]
    with Classifier(f"grpc://{server.grpc_address}", concurrency=8) as classifier:
        for image, found in zip(images, classifier.classify_many(images), strict=True):
            expected = answer(network(), image)
            assert isinstance(found, Classification)
            assert found.top[0].index == expected.argmax()
            assert found.top[0].probability == pytest.approx(expected.max(), abs=0.02)
        with pytest.raises(BadImage, match="damaged JPEG"):
            classifier.classify(broken())
