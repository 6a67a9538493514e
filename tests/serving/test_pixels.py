"""The images of a batch: whoever sends an odd one is refused alone, and no request takes a decoder for long."""

import io

import numpy as np
from PIL import Image

from alexnet_triton.imaging import decode
from alexnet_triton.serving.pixels import decode_requests, make_decoder
from tests.imaging.test_decode import exif
from tests.serving.tiny import SIZE, jpeg


def request(*files: bytes) -> np.ndarray:
    return np.array(files, dtype=object).reshape(-1, 1)


def flat(file_format: str, side: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, file_format, **options)
    return buffer.getvalue()


def test_an_odd_image_fails_its_own_request_alone() -> None:
    """Pillow's own TypeErrors and KeyErrors once left `execute`, and failed all requests of the batch."""
    odd = flat("JPEG", 64, exif=exif((0x0103, 11, bytes(4))))
    first, second, third, fourth = decode_requests(
        [request(jpeg(1)), request(odd), request(jpeg(2), odd), request(jpeg(3))], SIZE
    )
    assert isinstance(second, str)
    assert second.startswith("damaged JPEG image")
    assert isinstance(third, str)
    assert third.startswith("image 2 of 2: damaged JPEG image")
    for result, seed in ((first, 1), (fourth, 3)):
        np.testing.assert_array_equal(result, decode(jpeg(seed), SIZE)[None])


def test_a_request_has_a_budget_of_pixels() -> None:
    """Three files of 24 megapixels, a few kilobytes each, are more than a request may have decoded; JPEGs cost less."""
    png = flat("PNG", 4_900)
    (refused,) = decode_requests([request(png, png, png)], SIZE)
    assert isinstance(refused, str)
    assert refused.startswith("image 3 of 3: with those before it more than 64,000,000 pixels")
    (photographs,) = decode_requests([request(*[flat("JPEG", 4_900)] * 4)], SIZE)
    assert photographs.shape == (4, SIZE, SIZE, 3)


def test_the_model_of_an_earlier_release_calls_the_decoder() -> None:
    """A published repository has its own copy of `preprocess`, and a new release serves it."""
    (pixels,) = make_decoder("imaging", SIZE, 8, None)([request(jpeg(1))])
    np.testing.assert_array_equal(pixels, decode(jpeg(1), SIZE)[None])
