"""BentoML: a batching service with one worker a core, behind a service that takes the raw bodies.

Adaptive batching with a wrapper for single requests follows
docs.bentoml.com/en/latest/get-started/adaptive-batching.html. `max_latency_ms` is high, because BentoML refuses
requests that would take longer.
"""

from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from alexnet_triton.loadtest.bench.peers import Network, Settings

SETTINGS = Settings.given()
SERVICE: dict[str, Any] = {
    "traffic": {"timeout": 60, "max_concurrency": 1024},
    "logging": {"access": {"enabled": False}},
}


@bentoml.service(workers=SETTINGS.workers, **SERVICE)
class Classifier:
    def __init__(self) -> None:
        self._network = Network()

    @bentoml.api(batchable=True, max_batch_size=SETTINGS.batch, max_latency_ms=10_000)
    def classify(self, files: list[bytes]) -> list[dict]:
        return self._network.classify(files)


async def _classify(request: Request) -> JSONResponse:
    front: Any = bentoml.get_current_service()
    answers = await front.classifier.to_async.classify([await request.body()])
    return JSONResponse(answers[0])


@bentoml.service(workers=1, **SERVICE)
@bentoml.asgi_app(Starlette(routes=[Route("/classify", _classify, methods=["POST"])]))
class Front:
    classifier = bentoml.depends(Classifier)
