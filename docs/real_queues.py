"""The simulated queues beside three real Tritons behind the gateway, whose batches take their time by the clock."""

import asyncio
import math
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from alexnet_triton.common.command import UserError
from docs.queues import Outcome, Service, poisson_arrivals, simulate_queues
from tests.docker.gateway import INFER, Gateway, infer_request, make_secrets
from tests.serving.tiny import build_repository, jpeg, running_server

PODS, INSTANCES = 3, 2
FULL_BATCH_S = 0.9  # so slow that three pods and their callers fit on two cores
LOADS = {"below capacity": 0.7, "above capacity": 1.25}
SECONDS, WARM_UP_S = 60.0, 8.0
LONE = 40  # callers who find nobody before them, in half a second each
MARGIN = 0.15
SLOWED = """

class TritonPythonModel(Unslowed):
    def execute(self, requests):
        began = time.monotonic()
        answers = super().execute(requests)
        time.sleep(max(0.0, {batch_s}[len(requests) - 1] - (time.monotonic() - began)))
        return answers
"""


def slow_service(measured: Service) -> Service:
    """The measured times, stretched to FULL_BATCH_S."""
    factor = FULL_BATCH_S / measured.batch_s[-1]
    return Service(tuple(factor * each for each in measured.batch_s), INSTANCES)


def slow_repository(folder: Path, service: Service) -> Path:
    """The tests' small network, whose batches take the service's times by the clock."""
    repository = build_repository(folder / "model_repository", max_wait_s=service.max_wait_s)
    (model,) = (repository / "alexnet").glob("*/model.py")
    text = (
        model.read_text()
        .replace("class TritonPythonModel:", "class Unslowed:")
        .replace("import json", "import json\nimport time")
    )
    model.write_text(text + SLOWED.format(batch_s=list(service.batch_s)))
    return repository


@contextmanager
def real_pods(service: Service) -> Iterator[Gateway]:
    """Three real Tritons and the gateway before them."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        source = slow_repository(folder, service)
        copies = [shutil.copytree(source, folder / f"pod-{number}") for number in range(PODS)]
        servers = [stack.enter_context(running_server(copy, log=copy / "triton.log")) for copy in copies]
        http, grpc = [each.http_address for each in servers], [each.grpc_address for each in servers]
        limits = {"requests": 4096, "memory_mib": 65_536, "rate": 100_000, "burst": 10_000}
        gateway = Gateway(make_secrets(folder / "secrets"), folder / "access.jsonl", http, grpc, **limits)
        gateway.key()
        yield stack.enter_context(gateway)


async def send(gateway: Gateway, arrivals: np.ndarray) -> np.ndarray:
    """Seconds from each request's time to its answer, NaN where it was refused.

    Raises:
        UserError: an answer is neither.
    """
    body, headers = infer_request(jpeg(1))
    connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=gateway.ca))
    async with aiohttp.ClientSession(connector=connector, headers={**headers, **gateway.headers()}) as session:
        began = time.perf_counter()

        async def ask(at: float) -> float:
            await asyncio.sleep(began + at - time.perf_counter())
            try:
                async with session.post(gateway.url() + INFER, data=body) as answer:
                    await answer.read()
            except aiohttp.ClientError as error:
                raise UserError(f"the gateway did not answer ({error}): see whether the machine has room") from error
            if answer.status not in (200, 503):
                raise UserError(f"the gateway answered {answer.status}: see whether the machine has room")
            return time.perf_counter() - began - at if answer.status == 200 else math.nan

        return np.array(await asyncio.gather(*(ask(at) for at in arrivals.tolist())))


def validate(measured: Service, seconds: float) -> list[dict[str, Any]]:
    """A row for each load: what three real Tritons did, and what the simulation says of the same requests."""
    service, rows = slow_service(measured), []
    with real_pods(service) as gateway:
        rest_s = asyncio.run(send(gateway, np.arange(LONE) / 2)) - service.batch_s[0]
        for name, share in LOADS.items():
            rate = share * PODS * service.rate
            arrivals = poisson_arrivals(rate, int(rate * (WARM_UP_S + seconds)))
            counted = arrivals > WARM_UP_S
            real = Outcome(asyncio.run(send(gateway, arrivals))[counted], math.nan, math.nan)
            seconds_each = simulate_queues(arrivals, PODS, service).seconds[counted]
            # The gateway, decoding, the way: of each request what one of the lone callers saw.
            ways_s = np.random.default_rng(0).choice(rest_s, len(seconds_each))
            rows.append(_beside(name, real, Outcome(seconds_each + ways_s, math.nan, math.nan)))
    return rows


def _beside(name: str, real: Outcome, simulated: Outcome) -> dict[str, Any]:
    p99_s = [real.quantile(0.99), simulated.quantile(0.99)]
    refused = [real.refused, simulated.refused]
    agree = all(close(*pair) for pair in (p99_s, refused))
    return {"load": name, "requests": len(real.seconds), "p99_s": p99_s, "refused": refused, "agree": agree}


def close(real: float, simulated: float) -> bool:
    """Within MARGIN of what is real; of a share, within a hundredth of all too."""
    return abs(real - simulated) <= max(MARGIN * real, 0.01)
