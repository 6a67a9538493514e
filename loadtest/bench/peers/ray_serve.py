"""Ray Serve: one replica a core, each with its own batches.

`serve.batch` follows docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html. The switches of
.../performance.html are in the environment, see SETTINGS in `alexnet_triton.loadtest.bench.servers`.
"""

import os
import signal

import ray
from ray import serve
from starlette.requests import Request

from alexnet_triton.loadtest.bench.peers import CORES, Network, Settings

SETTINGS = Settings.given()


@serve.deployment(
    num_replicas=SETTINGS.workers,
    max_ongoing_requests=512,
    ray_actor_options={"num_cpus": CORES / SETTINGS.workers},
    logging_config={"log_level": "ERROR"},
)
class Classifier:
    def __init__(self) -> None:
        self._network = Network()

    @serve.batch(max_batch_size=SETTINGS.batch, batch_wait_timeout_s=SETTINGS.wait_ms / 1e3)
    async def classify(self, files: list[bytes]) -> list[dict]:
        return self._network.classify(files)

    async def __call__(self, request: Request) -> dict:
        return await self.classify(await request.body())


def main() -> None:
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Classifier.bind(), route_prefix="/classify")  # type: ignore[attr-defined]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
