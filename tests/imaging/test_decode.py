"""Every kind of image file that a user may send."""

import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from alexnet_triton import imaging
from alexnet_triton.imaging import MAX_BYTES, ImageError, center_box, decode, resample

SIZE = 227


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def photograph() -> Image.Image:
    """A smooth picture, 500 x 375: red grows to the right, green to the bottom."""
    y, x = np.mgrid[0:375, 0:500]
    return Image.fromarray(np.stack([x // 2, y // 2, np.full_like(x, 60)], axis=2).astype(np.uint8))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_formats_give_the_same_picture(photograph: Image.Image, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    pixels = decode(encode(photograph, file_format, **options), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    expected = decode(encode(photograph, "PNG"), SIZE)
    assert np.abs(pixels.astype(int) - expected).mean() < 8  # a GIF has 256 colours


def test_geometry_is_short_side_to_256_and_central_crop(photograph: Image.Image) -> None:
    short = photograph.resize((341, 256), Image.Resampling.BILINEAR)
    left, upper = (341 - SIZE) // 2, (256 - SIZE) // 2
    expected = np.asarray(short.crop((left, upper, left + SIZE, upper + SIZE)))
    difference = np.abs(decode(encode(photograph, "PNG"), SIZE).astype(int) - expected)
    assert difference.max() <= 2


def test_large_jpeg_is_decoded_at_a_reduced_scale_with_the_same_look(photograph: Image.Image) -> None:
    large = photograph.resize((4000, 3000), Image.Resampling.BICUBIC)
    from_jpeg = decode(encode(large, "JPEG", quality=95), SIZE)
    from_png = decode(encode(large, "PNG"), SIZE)
    assert np.abs(from_jpeg.astype(int) - from_png).mean() < 1.5


def test_exif_rotation_is_applied(photograph: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    turned = decode(encode(photograph, "PNG", exif=exif), SIZE)
    upright = decode(encode(photograph.transpose(Image.Transpose.ROTATE_270), "PNG"), SIZE)
    assert np.array_equal(turned, upright)


def test_grey_image_has_three_equal_channels(photograph: Image.Image) -> None:
    grey = photograph.convert("L")
    pixels = decode(encode(grey, "PNG"), SIZE)
    assert np.array_equal(pixels, decode(encode(grey.convert("RGB"), "PNG"), SIZE))


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "RGBA"])
def test_other_modes_become_rgb(photograph: Image.Image, mode: str) -> None:
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    assert decode(encode(photograph.convert(mode), file_format), SIZE).shape == (SIZE, SIZE, 3)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    levels = np.full((300, 300), 0x8000, np.uint16)
    assert np.all(decode(encode(Image.fromarray(levels), "PNG"), SIZE) == 0x80)


def test_transparency_is_laid_on_white() -> None:
    assert np.all(decode(encode(Image.new("RGBA", (300, 300), (0, 0, 0, 0)), "PNG"), SIZE) == 255)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (300, 300), colour) for colour in ("red", "blue")]
    animation = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.all(decode(animation, SIZE) == [255, 0, 0])


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (2000, 3)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert decode(encode(Image.new("RGB", size, "red"), "PNG"), SIZE).shape == (SIZE, SIZE, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "empty"),
        (b"these are words", "not a JPEG, PNG"),
        (b"\xff\xd8\xff\xe0 and no more", "damaged"),
        (bytes(MAX_BYTES + 1), "bytes, more than"),
        (bomb(30_000, 30_000), "30000 x 30000 pixels"),
        (bomb(0, 0), "damaged"),
    ],
)
def test_refusals_say_why(encoded: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as refusal:
        decode(encoded, SIZE)
    assert "\n" not in str(refusal.value)


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF with a quarter turn and other entries: tag, type, four bytes of value."""
    turned = (0x0112, 3, struct.pack("<HH", 6, 0))
    rows = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in sorted((turned, *entries)))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries) + 1) + rows + bytes(4)


@pytest.mark.parametrize(
    "entry", [(0x0103, 11, bytes(4)), (0x010F, 11, bytes(4))]
)  # floats in place of a number and a name
def test_exif_that_pillow_trips_over_is_the_image_s_fault(photograph: Image.Image, entry: tuple) -> None:
    with pytest.raises(ImageError, match="damaged JPEG image"):
        decode(encode(photograph, "JPEG", exif=exif(entry)), SIZE)


@pytest.mark.parametrize("side", [5_001, 10_000])
def test_a_small_file_of_many_pixels_is_refused(side: int) -> None:
    with pytest.raises(ImageError, match=f"image of {side} x {side} pixels, more than the 25,000,000 allowed"):
        decode(encode(Image.new("1", (side, side)), "PNG"), SIZE)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_truncated_files_are_refused(photograph: Image.Image, file_format: str, fraction: float) -> None:
    whole = encode(photograph, file_format)
    with pytest.raises(ImageError):
        decode(whole[: int(len(whole) * fraction)], SIZE)


def test_center_box_is_central_and_in_proportion() -> None:
    assert center_box(512, 256, 128) == (192, 64, 320, 192)


def test_resample_of_the_whole_is_the_identity() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    assert np.array_equal(resample(Image.fromarray(pixels), (0, 0, SIZE, SIZE), SIZE), pixels)


BOXES = [  # of an image of 500 x 375
    (0.0, 0.0, 500.0, 375.0),
    center_box(500, 375, SIZE),
    (100.25, 0.5, 131.75, 32.0),
    (499.0, 374.0, 500.0, 375.0),
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("grey", [False, True])
def test_with_vector_instructions_values_differ_by_at_most_one_from_pillows(box: imaging.Box, grey: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8))
    image = noise.convert("L") if grey else noise
    expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)).astype(int)
    pixels = resample(image, box, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert np.abs(pixels - (expected[:, :, None] if grey else expected)).max() <= 1


def test_pillow_scales_where_the_package_for_vector_instructions_is_missing(
    photograph: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    imaging._vector_scaler.cache_clear()
    try:
        pixels = resample(photograph, BOXES[1], SIZE)
    finally:
        imaging._vector_scaler.cache_clear()
    assert np.array_equal(pixels, photograph.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=BOXES[1]))


def test_threads_scale_at_the_same_time(photograph: Image.Image) -> None:
    images = [Image.eval(photograph, lambda value, add=add: value // 2 + add) for add in range(8)]
    expected = [resample(image, BOXES[1], SIZE) for image in images]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: resample(images[number % 8], BOXES[1], SIZE), range(200)))
    assert all(np.array_equal(pixels, expected[number % 8]) for number, pixels in enumerate(got))
