"""Other servers of the same network, each set up as its documentation recommends.

They run in an environment of their own, .venv-bench, with this project's decoder and engine, so that only the serving
differs. So nothing that they import may need more than `requirements.lock` has.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.imaging import decode
from alexnet_triton.serving.engine import Engine, EngineConfig

CORES = usable_cores()
BATCH = 16  # the largest of every server that is not tuned, so that none is better off
SETTINGS = "BENCH_SETTINGS"  # the environment variable that holds a peer's, as JSON


@dataclass(frozen=True)
class Settings:
    """What `alexnet-triton bench tune --peer` varies; each peer takes those that it has."""

    workers: int = CORES  # processes that run the network
    decoders: int = CORES  # processes, where decoding is a stage of its own
    batch: int = BATCH  # the largest
    wait_ms: int = 5  # of the first image of a batch, for more

    @classmethod
    def given(cls) -> "Settings":
        """Those of this process's environment."""
        return cls(**json.loads(os.environ.get(SETTINGS, "{}")))

    def describe(self, names: Sequence[str]) -> str:
        """Those that are named, in words."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)


class Network:
    """Classifies files as one batch, with one thread, because each core has a worker."""

    def __init__(self) -> None:
        config = EngineConfig(threads=1, max_batch_size=Settings.given().batch)
        self._engine = Engine(Path(os.environ["BENCH_NETWORK"]), config)
        self._engine.warm_up()

    def classify(self, files: Sequence[bytes]) -> list[dict[str, Any]]:
        """The class and probability of each JPEG."""
        size = self._engine.input_size
        return self.classify_pixels(np.stack([decode(file, size) for file in files]))

    def classify_pixels(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """The class and probability of each image, uint8 [n, height, width, 3]."""
        probabilities = self._engine.infer(pixels)
        best = probabilities.argmax(axis=1)
        return [{"index": int(i), "probability": float(p[i])} for i, p in zip(best, probabilities, strict=True)]
