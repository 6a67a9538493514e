"""LitServe: one worker a core and batches of 16, after lightning.ai/docs/litserve/features/batching.

FastAPI's `Body` takes the raw bodies, so that no image is wrapped in JSON.
"""

import os
from typing import Annotated

import litserve
from fastapi import Body

from alexnet_triton.loadtest.bench.peers import Network, Settings


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._network = Network()

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def predict(self, files: list[bytes]) -> list[dict]:
        return self._network.classify(files)


def main() -> None:
    settings = Settings.given()
    api = Classifier(max_batch_size=settings.batch, batch_timeout=settings.wait_ms / 1e3, api_path="/classify")
    workers = settings.workers
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=60, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, access_log=False, log_level="error"
    )


if __name__ == "__main__":
    main()
