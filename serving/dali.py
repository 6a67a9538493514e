"""Decoding and cropping by NVIDIA DALI: on a GPU, or on a processor to be compared with `imaging`.

    python -m alexnet_triton.serving.dali --images FOLDER        # needs the extra `dali`, 1.1 GB

Geometry as in `imaging`: upright by EXIF, short side to 256 with antialiased bilinear scaling, centre crop.
`device="mixed"`, decoding on a GPU: not run: no GPU.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.imaging import SHORT_SIDE, ImageError, decode, identify
from alexnet_triton.serving.pixels import Requests, Results, decode_requests

SUFFIXES = {".jpg", ".jpeg"}
JPEG_END = b"\xff\xd9"
THREADS = 2


def build_pipeline(size: int, max_batch_size: int, device_id: int | None = None) -> Any:
    """A DALI pipeline from `encoded`, a batch of files as uint8 [bytes], to uint8 [n, size, size, 3], RGB.

    `device_id` None runs on the processor; a GPU's number decodes there (`device="mixed"`).
    """
    from nvidia.dali import fn, math, pipeline_def, types

    @pipeline_def(batch_size=max_batch_size, num_threads=THREADS, device_id=device_id, prefetch_queue_depth=1)
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
        self._size, self._max_batch_size, self._device_id = size, max_batch_size, device_id
        self._start()

    def _start(self) -> None:
        self._pipeline = build_pipeline(self._size, self._max_batch_size, self._device_id)

    def decode_requests(self, requests: Requests) -> Results:
        """As `pixels.decode_requests`, to which it leaves the requests with any file that is no whole JPEG."""
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
        parts = iter(np.split(pixels, ends[:-1]))
        others = iter(decode_requests(list(compress(requests, map(not_, fits))), self._size))
        return [next(parts if fit else others) for fit in fits]


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


def compare(files: Sequence[bytes], size: int) -> dict[str, float]:
    """Differences of pixel values between DALI and `imaging`, from 0 to 255."""
    pipeline = build_pipeline(size, max_batch_size=1)
    differences = [np.abs(decode_batch(pipeline, [file])[0].astype(int) - decode(file, size)) for file in files]
    means = [float(difference.mean()) for difference in differences]
    return {"mean": float(np.mean(means)), "worst image's mean": max(means), "largest": float(np.max(differences))}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 compared, 1 no DALI or no images."""
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.serving.dali", description="DALI's pixels beside this project's."
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEGs, searched")
    parser.add_argument("--size", type=int, default=227, help="side of the crop (default 227)")
    options = parser.parse_args(argv)
    files = [path.read_bytes() for path in sorted(options.images.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if not files:
        print(f"dali: no JPEGs in {options.images}: name a folder that has some", file=sys.stderr)
        return 1
    try:
        found = compare(files, options.size)
    except ModuleNotFoundError:
        print("dali: NVIDIA DALI is not installed: pip install -e .[dali]", file=sys.stderr)
        return 1
    except ImageError as error:
        print(f"dali: {error}", file=sys.stderr)
        return 1
    print(f"{len(files)} images, difference: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
