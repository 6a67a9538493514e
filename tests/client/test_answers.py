"""Equal answers, equal to PyTorch's, whichever way they are asked for."""

import asyncio
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.client import AsyncClassifier, BadImage, Classification, Classifier, Config, Failure, UsageError
from alexnet_triton.client.protocol import Result
from alexnet_triton.imaging import decode
from answers import agree, by_torch
from embedded_triton import Triton
from photographs import jpeg


@pytest.fixture(scope="session")
def expected(pictures: list[Path]) -> list[np.ndarray]:
    return [by_torch(path.read_bytes()) for path in pictures]


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("send", ["encoded", "pixels"])
def test_threads_and_asyncio_get_what_pytorch_says(
    url: str, send: str, batch: int, pictures: list[Path], expected: list[np.ndarray]
) -> None:
    settings = {"send": send, "batch": batch, "concurrency": 4}
    with Classifier(url, **settings) as classifier:
        results = list(classifier.classify_many(pictures))

    async def many() -> list[Result]:
        async with AsyncClassifier(url, **settings) as classifier:
            return [result async for result in classifier.classify_many(pictures)]

    assert without_times(asyncio.run(many())) == without_times(results)
    assert [result.path for result in results] == list(map(str, pictures))
    assert all(agree(result, probabilities) for result, probabilities in zip(results, expected, strict=True))


def without_times(results: Iterable[Result]) -> list[Result]:
    return [replace(result, ms=0.0) if isinstance(result, Classification) else result for result in results]


@pytest.mark.parametrize("model", ["classify", "alexnet"])
def test_path_bytes_array_and_pillow_image_are_the_same_picture(triton: Triton, tmp_path: Path, model: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    path = tmp_path / "lossless.png"
    image.save(path)
    with Classifier(triton.urls["grpc"], model=model) as classifier:
        tops = [classifier.classify(each).top for each in (path, str(path), path.read_bytes(), pixels, image)]
    assert tops.count(tops[0]) == len(tops)


def test_grey_arrays_and_transparent_pillow_images(triton: Triton) -> None:
    grey = np.full((50, 40), 90, np.uint8)
    glass = Image.new("RGBA", (30, 30), (10, 200, 30, 128))
    buffer = io.BytesIO()
    glass.save(buffer, "PNG")
    with Classifier(triton.urls["grpc"], model="alexnet") as classifier:
        assert classifier.classify(grey).top == classifier.classify(np.repeat(grey[:, :, None], 3, 2)).top
        assert classifier.classify(glass).top == classifier.classify(buffer.getvalue()).top


@pytest.mark.parametrize("source", [np.zeros((3, 3), np.float32), np.zeros((2, 2, 4), np.uint8), 7, None])
def test_what_is_no_image_is_refused(triton: Triton, source: object) -> None:
    with Classifier(triton.urls["grpc"]) as classifier, pytest.raises(UsageError, match="is no image: give"):
        classifier.classify(source)  # type: ignore[arg-type]


def test_a_bad_image_in_a_batch_fails_alone(url: str) -> None:
    cut = jpeg(0)[:300]
    images = [jpeg(1), cut, jpeg(2), b"", jpeg(3), cut]
    with Classifier(url, batch=6) as classifier:
        results = list(classifier.classify_many(images))
        with pytest.raises(BadImage, match="damaged"):
            classifier.classify(cut)
    assert [isinstance(result, Failure) for result in results] == [False, True, False, True, False, True]
    for position in (0, 2, 4):
        assert agree(results[position], by_torch(images[position]))


def test_more_images_than_a_batch_of_the_model_holds(url: str) -> None:
    with Classifier(url, batch=1000) as classifier:
        assert [agree(result, by_torch(jpeg(3))) for result in classifier.classify_many([jpeg(3)] * 65)] == [True] * 65


def test_a_long_run_sends_several_images_a_request(url: str) -> None:
    with Classifier(url, batch=0, concurrency=3) as classifier:
        results = list(classifier.classify_many([jpeg(seed % 7) for seed in range(14)]))
    assert all(agree(result, by_torch(jpeg(number % 7))) for number, result in enumerate(results))
    sizes = [result.timing.images for result in results if isinstance(result, Classification)]
    assert sizes == [1] * 3 + [4] * 8 + [3] * 3


def test_look_ahead_is_bounded(triton: Triton) -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield jpeg(1)

    with Classifier(triton.urls["grpc"], concurrency=3, batch=2) as classifier:
        results = classifier.classify_many(endless())
        for _ in range(40):
            next(results)
        results.close()
    assert 40 <= read <= 40 + 2 * (2 * 3 + 2)


def test_top_is_at_most_the_number_of_classes(triton: Triton) -> None:
    with Classifier(triton.urls["grpc"], top=1000) as classifier:
        top = classifier.classify(jpeg(1)).top
    assert len(top) == 10
    assert sum(label.probability for label in top) == pytest.approx(1, abs=1e-5)


def test_numbers_out_of_range_are_refused_before_anything_is_sent() -> None:
    for wrong in ({"top": 0}, {"batch": -1}, {"concurrency": -1}, {"timeout_s": 0.0}, {"retries": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong)).split("_")[0]):
            Config(**wrong)


def test_a_closed_classifier_says_so(triton: Triton) -> None:
    classifier = Classifier(triton.urls["grpc"])
    classifier.classify(jpeg(1))
    classifier.close()
    with pytest.raises(UsageError, match="was closed"):
        classifier.classify(jpeg(1))


def test_decoding_here_and_there_is_one_definition(triton: Triton) -> None:
    with Classifier(triton.urls["grpc"], model="alexnet") as here, Classifier(triton.urls["grpc"]) as there:
        tops = [classifier.classify(jpeg(4)).top for classifier in (here, there)]
        pixels = here.classify(decode(jpeg(4, 227, 227), 227))
    assert tops[0] == tops[1]
    assert pixels.model == "alexnet"
