"""Batches of images ready for the network, prepared ahead by threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imaging import center_box, resample
from training.splits import Split

Cut = Callable[[Image.Image, int], np.ndarray]  # an image and its place in the run to uint8 [S, S, 3]
Chunk = tuple[np.ndarray, np.ndarray]  # indices of images and their places in the run, int64 [B] each
Batch = tuple[Tensor, Tensor]  # images uint8 [B, S, S, 3] and labels int64 [B]


def center_cut(size: int) -> Cut:
    """The evaluation geometry, the server's own: short side to 256, central size x size."""
    return lambda image, _: resample(image, center_box(*image.size, size), size)


def in_order(count: int, batch: int) -> Iterator[Chunk]:
    """Indices 0 to count - 1 in chunks of `batch`, the last one shorter."""
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        yield indices, indices


def steps_per_epoch(count: int, batch: int) -> int:
    """Whole batches in `count` images, at least one."""
    return max(count // batch, 1)


def shuffled(count: int, batch: int, seed: int, epoch: int) -> Iterator[Chunk]:
    """The chunks of one epoch, each epoch in another order, the incomplete last chunk left out."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, steps_per_epoch(count, batch) * batch, batch):
        indices = order[start : start + batch]
        yield indices, epoch * count + np.arange(start, start + len(indices))


def share(chunks: Iterable[Chunk], rank: int, world: int) -> Iterator[Chunk]:
    """One process's part of every chunk; all parts are of the same length, up to `world - 1` images are left out."""
    for indices, places in chunks:
        end = len(indices) - len(indices) % world if len(indices) >= world else len(indices)
        yield indices[rank:end:world], places[rank:end:world]


def batches(
    split: Split, chunks: Iterable[Chunk], cut: Cut, workers: int | None = None, pin: bool = False
) -> Iterator[Batch]:
    """The images and labels of each chunk, without damaged ones; in pinned memory where `pin` says so.

    Threads prepare a few batches ahead: decoding and scaling release the interpreter lock.
    """
    all_labels = split.labels
    workers = workers or len(os.sched_getaffinity(0))

    def prepare(chunk: Chunk) -> Batch:
        opened = [(split.image(int(index)), int(index), int(place)) for index, place in zip(*chunk, strict=True)]
        views = [(cut(image, place), index) for image, index, place in opened if image is not None]
        if not views:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        images = torch.from_numpy(np.stack([view for view, _ in views]))
        labels = torch.from_numpy(all_labels[[index for _, index in views]])
        return (images.pin_memory(), labels.pin_memory()) if pin else (images, labels)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[Batch]] = deque()
    try:
        for chunk in chunks:
            ahead.append(pool.submit(prepare, chunk))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
