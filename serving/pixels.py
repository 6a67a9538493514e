"""What the model `preprocess` does with a batch of requests: by `imaging`, or by NVIDIA DALI on a GPU.

DALI's geometry is `imaging`'s: upright by EXIF, short side to 256 with antialiased bilinear scaling, centre crop.
A processor runs the same pipeline, so that it can be compared; decoding on a GPU: not run: no GPU.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from operator import not_
from typing import Any

import numpy as np
from PIL import Image

from alexnet_triton.imaging import SHORT_SIDE, ImageError, identify, render

Requests = Sequence[np.ndarray]  # a request each, bytes objects [n, 1]
Results = list[np.ndarray | str]  # of each request its pixels, uint8 [n, size, size, 3], or what is wrong with it
JPEG_END = b"\xff\xd9"
DALI_THREADS = 2
# What one request may have decoded: a second or two of a core, whatever its images are. A JPEG is decoded at a
# reduced scale, for an eighth of the time.
MAX_REQUEST_PIXELS, JPEG_DISCOUNT = 64_000_000, 8
_MOST_CHARACTERS = 300  # of DALI's reason, which may be a page


@dataclass(frozen=True)
class Decoder:
    """What decodes the batches of `preprocess`."""

    name: str  # imaging or dali
    decode: Callable[[Requests], Results]
    fault: str = ""  # why it is not the one that was asked for

    def __call__(self, requests: Requests) -> Results:
        """As `decode`: the `preprocess` of a repository that was published with an earlier release asks so."""
        return self.decode(requests)


def make_decoder(name: str, size: int, max_batch_size: int, device_id: int | None) -> Decoder:
    """The decoder that a configuration names: `imaging`, or `dali` (on the processor where `device_id` is None).

    Where DALI is not there, is made for another CUDA or does not start, `imaging` decodes in its place.

    Args:
        size: side of the square crop, in pixels.
        max_batch_size: files of all requests that are decoded at once, at most.

    Raises:
        ValueError: it names another.
    """
    if name not in ("imaging", "dali"):
        raise ValueError(f"the parameter 'decoder' is '{name}': give imaging or dali")
    imaging = Decoder("imaging", partial(decode_requests, size=size))
    if name == "imaging":
        return imaging
    try:
        return Decoder("dali", DaliDecoder(size, max_batch_size, device_id).decode_requests)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_MOST_CHARACTERS]
        return replace(imaging, fault=f"DALI does not start ({reason}): imaging decodes, on the processor")


def decode_requests(requests: Requests, size: int) -> Results:
    """Decode the files of several requests into one array, and hand each request its rows.

    Args:
        requests: a request each, bytes objects [n, 1].
        size: side of the square crop, in pixels.

    Returns:
        For each request a view, uint8 [n, size, size, 3], or the message of its first bad image.
    """
    pixels = np.empty((sum(len(files) for files in requests), size, size, 3), np.uint8)
    results: Results = []
    start = 0
    for files in requests:
        rows = pixels[start : start + len(files)]
        problem = _decode_into(rows, files)
        results.append(rows if problem is None else problem)
        start += len(files)
    return results


def _decode_into(rows: np.ndarray, files: np.ndarray) -> str | None:
    budget = MAX_REQUEST_PIXELS
    for row, encoded in enumerate(files.ravel()):
        try:
            image = identify(encoded)
            budget -= image.width * image.height // (JPEG_DISCOUNT if image.format == "JPEG" else 1)
            if budget < 0:
                raise ImageError(f"with those before it more than {MAX_REQUEST_PIXELS:,} pixels: send fewer a request")
            rows[row] = render(image, rows.shape[1])
        except ImageError as error:
            return str(error) if len(files) == 1 else f"image {row + 1} of {len(files)}: {error}"
    return None


def build_pipeline(size: int, max_batch_size: int, device_id: int | None = None) -> Any:
    """A DALI pipeline from `encoded`, a batch of files as uint8 [bytes], to uint8 [n, size, size, 3], RGB.

    `device_id` None runs on the processor; a GPU's number decodes there (`device="mixed"`).
    """
    from nvidia.dali import fn, math, pipeline_def, types

    @pipeline_def(batch_size=max_batch_size, num_threads=DALI_THREADS, device_id=device_id, prefetch_queue_depth=1)
    def preprocess() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        where = "cpu" if device_id is None else "mixed"
        images = fn.decoders.image(encoded, device=where, output_type=types.RGB, adjust_orientation=True)
        shape = images.shape(dtype=types.FLOAT)
        height, width = shape[0], shape[1]
        side = math.min(height, width) * (size / SHORT_SIDE)  # of the source, as `imaging.center_box`
        corner = fn.stack((height - side) / 2, (width - side) / 2)
        scaling = {"interp_type": types.INTERP_LINEAR, "antialias": True}
        return fn.resize(images, size=(size, size), roi_start=corner, roi_end=corner + side, **scaling)

    pipeline = preprocess()
    pipeline.build()
    return pipeline


def decode_batch(pipeline: Any, files: Sequence[bytes]) -> np.ndarray:
    """Run a pipeline on at most as many files as its largest batch: uint8 [n, size, size, 3], in the host's memory.

    Raises:
        RuntimeError: it cannot decode one of them; it must not be used again.
    """
    (images,) = pipeline.run(encoded=[np.frombuffer(file, np.uint8) for file in files])
    return np.array(images.as_cpu().as_tensor())


class DaliDecoder:
    """What `preprocess` does where there is a GPU: whole JPEGs by DALI; all else, and what DALI refuses, by `imaging`.

    The pixels come back through the host's memory, 155 kB an image: what Triton may still read of DALI's own when
    DALI decodes the next batch could not be tried without a GPU.
    """

    def __init__(self, size: int, max_batch_size: int, device_id: int | None) -> None:
        """Start DALI, and decode once: what it needs of CUDA is loaded then, and a GPU without it is noticed here.

        Raises:
            ImportError, OSError, RuntimeError: it does not start.
        """
        self._size, self._max_batch_size, self._device_id = size, max_batch_size, device_id
        self._start()
        decode_batch(self._pipeline, [_small_jpeg()])

    def _start(self) -> None:
        self._pipeline = build_pipeline(self._size, self._max_batch_size, self._device_id)

    def decode_requests(self, requests: Requests) -> Results:
        """As `decode_requests`, to which it leaves the requests with any file that is no whole JPEG."""
        fits = [all(map(is_whole_jpeg, files.ravel())) for files in requests]
        chosen = list(compress(requests, fits))
        if not chosen:
            return decode_requests(requests, self._size)
        try:
            pixels = decode_batch(self._pipeline, [file for files in chosen for file in files.ravel()])
        except RuntimeError:  # one damaged file is enough; `imaging` says which
            self._start()
            return decode_requests(requests, self._size)
        ends = np.cumsum([len(files) for files in chosen])
        decoded = iter(np.split(pixels, ends[:-1]))
        others = iter(decode_requests(list(compress(requests, map(not_, fits))), self._size))
        return [next(decoded if fit else others) for fit in fits]


def _small_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SHORT_SIDE, SHORT_SIDE)).save(buffer, "JPEG")
    return buffer.getvalue()


def is_whole_jpeg(encoded: bytes) -> bool:
    """Whether DALI can be trusted with it: it would paint the missing part of a truncated JPEG grey, and has no bound
    on the size of an image."""
    if not encoded.endswith(JPEG_END):
        return False
    try:
        image = identify(encoded)
    except ImageError:
        return False
    return image.format == "JPEG" and image.mode in ("L", "RGB")
