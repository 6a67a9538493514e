"""Mosec: decoding and the network as two stages, each with a worker a core; only the network is batched.

Stages and dynamic batching follow mosecorg.github.io/mosec/reference/interface.html. The raw bodies are the requests,
so that no image is wrapped in JSON; the pixels go from stage to stage as Mosec passes objects, pickled.
"""

import os

import numpy as np
from mosec import Server, Worker

from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench.peers import Network, Settings


class Decoder(Worker):
    def __init__(self) -> None:
        super().__init__()
        self._size = int(os.environ["BENCH_SIZE"])

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        return decode(data, self._size)


class Classifier(Worker):
    def __init__(self) -> None:
        super().__init__()
        self._network = Network()

    def forward(self, data: list[np.ndarray]) -> list[dict]:
        return self._network.classify_pixels(np.stack(data))


def main() -> None:
    server = Server()  # reads the command line: port, time-out
    settings = Settings.given()
    batching = {"max_batch_size": settings.batch, "max_wait_time": settings.wait_ms}
    server.append_worker(Decoder, num=settings.decoders, route="/classify")
    server.append_worker(Classifier, num=settings.workers, **batching, route="/classify")
    server.run()


if __name__ == "__main__":
    main()
