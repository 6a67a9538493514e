"""Decoding and cropping by NVIDIA DALI: on a GPU with its JPEG decoder, on a processor to be compared with `imaging`.

    python -m serving.dali --images FOLDER        # needs the extra `dali`, 1.1 GB

Geometry as in `imaging`: upright by EXIF, short side to 256 with antialiased bilinear scaling, centre crop.
Not run on a GPU: there is none.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imaging import SHORT_SIDE, ImageError, decode

SUFFIXES = {".jpg", ".jpeg"}
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
    """Run a pipeline on a processor, on at most as many files as its largest batch."""
    (images,) = pipeline.run(encoded=[np.frombuffer(file, np.uint8) for file in files])
    return np.stack([np.asarray(images.at(row)) for row in range(len(files))])


def compare(files: Sequence[bytes], size: int) -> dict[str, float]:
    """Differences of pixel values between DALI and `imaging`, from 0 to 255."""
    pipeline = build_pipeline(size, max_batch_size=1)
    differences = [np.abs(decode_batch(pipeline, [file])[0].astype(int) - decode(file, size)) for file in files]
    means = [float(difference.mean()) for difference in differences]
    return {"mean": float(np.mean(means)), "worst image's mean": max(means), "largest": float(np.max(differences))}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 compared, 1 no DALI or no images."""
    parser = argparse.ArgumentParser(prog="python -m serving.dali", description="DALI's pixels beside this project's.")
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
