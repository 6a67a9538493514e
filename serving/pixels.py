"""What the model `preprocess` does with a batch of requests."""

from collections.abc import Sequence

import numpy as np

from imaging import ImageError, decode


def decode_requests(requests: Sequence[np.ndarray], size: int) -> list[np.ndarray | str]:
    """Decode the files of several requests into one array, and hand each request its part.

    Args:
        requests: a request each, bytes objects [n, 1].
        size: side of the square crop, in pixels.

    Returns:
        For each request a view, uint8 [n, size, size, 3], or the message of its first bad image.
    """
    pixels = np.empty((sum(len(files) for files in requests), size, size, 3), np.uint8)
    results: list[np.ndarray | str] = []
    start = 0
    for files in requests:
        part = pixels[start : start + len(files)]
        problem = _decode_into(part, files)
        results.append(part if problem is None else problem)
        start += len(files)
    return results


def _decode_into(part: np.ndarray, files: np.ndarray) -> str | None:
    for row, encoded in enumerate(files.ravel()):
        try:
            part[row] = decode(encoded, part.shape[1])
        except ImageError as error:
            return str(error) if len(files) == 1 else f"image {row + 1} of {len(files)}: {error}"
    return None
