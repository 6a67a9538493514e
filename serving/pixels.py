"""What the model `preprocess` does with a batch of requests."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from alexnet_triton.imaging import ImageError, decode

Requests = Sequence[np.ndarray]  # a request each, bytes objects [n, 1]
Results = list[np.ndarray | str]  # of each request its pixels, uint8 [n, size, size, 3], or what is wrong with it


def make_decoder(name: str, size: int, max_batch_size: int, device_id: int | None) -> Callable[[Requests], Results]:
    """The decoder that a configuration names: `imaging`, or `dali` (on the processor where `device_id` is None).

    Args:
        size: side of the square crop, in pixels.
        max_batch_size: files of all requests that are decoded at once, at most.

    Raises:
        ValueError: it names another.
        ModuleNotFoundError: NVIDIA DALI is not installed.
    """
    if name == "dali":
        from alexnet_triton.serving.dali import DaliDecoder

        return DaliDecoder(size, max_batch_size, device_id).decode_requests
    if name != "imaging":
        raise ValueError(f"the parameter 'decoder' is '{name}': give imaging or dali")
    return partial(decode_requests, size=size)


def decode_requests(requests: Requests, size: int) -> Results:
    """Decode the files of several requests into one array, and hand each request its part.

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
