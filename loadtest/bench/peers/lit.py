"""LitServe: one worker a core and batches of 16, after lightning.ai/docs/litserve/features/batching.

FastAPI's `Body` takes the raw bodies, so that no image is wrapped in JSON.
"""

import os
from collections.abc import Sequence
from typing import Annotated

import litserve
from fastapi import Body

from alexnet_triton.loadtest.bench.peers.network import BATCH, WORKERS, Network


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._network = Network()

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def batch(self, inputs: Sequence[bytes]) -> list[bytes]:
        return list(inputs)

    def predict(self, files: list[bytes]) -> list[dict]:
        return self._network.classify(files)

    def unbatch(self, answers: list[dict]) -> list[dict]:
        return answers


def main() -> None:
    api = Classifier(max_batch_size=BATCH, batch_timeout=0.005, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=60, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, access_log=False, log_level="error"
    )


if __name__ == "__main__":
    main()
