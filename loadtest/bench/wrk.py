"""Load over gRPC: requests that were serialised beforehand, sent by h2load, which costs a fifth of a Python client.

h2load reads neither the body of an answer nor gRPC's status in its trailers, so what was answered
is counted by the server: its own statistics before and after.
"""

import json
import shutil
import struct
import subprocess
import tempfile
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2

from alexnet_triton.loadtest.bench.config import BenchError

# WAS alexnet_triton.loadtest.bench.wrk: One measurement of load, by programs that cost the measured machine little: wrk over HTTP, h2load over gRPC.


SCRIPT = Path(__file__).with_name("post.lua")
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}  # Debian's


@dataclass(frozen=True)
class Load:
    """What a load generator saw. The percentiles are of all that came back, refusals among them."""

    images_per_s: float  # answered, not refused
    p50_ms: float
    p99_ms: float
    refused: int = 0
    failed: int = 0  # connections cut, timeouts


def program(name: str) -> str:
    """Raises BenchError where it is not installed."""
    path = shutil.which(name)
    if path is None:
        raise BenchError(f"no {name}: install Debian's package {PACKAGES[name]}")
    return path


def http_load(url: str, connections: int, seconds: float, bodies: Path, headers: dict[str, str] | None = None) -> Load:
    """POST the JPEGs of `bodies` to `url`, each connection one after another (closed loop).

    Raises:
        BenchError: wrk is missing or ended badly.
    """
    arguments = [text for pair in (headers or {}).items() for text in pair]
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"]
    done = subprocess.run(
        [*command, "-s", str(SCRIPT), url, "--", str(bodies), *arguments], capture_output=True, text=True
    )
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        raise BenchError(f"wrk on {url}: {(done.stderr or done.stdout).strip() or 'no result'}")
    seen = json.loads(result[0].removeprefix("RESULT "))
    good = seen["answers"] - seen["refused"]
    return Load(good / seen["seconds"], seen["p50_ms"], seen["p99_ms"], seen["refused"], seen["failed"])


METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Addresses:
    """Where the measured Triton answers."""

    http: str
    grpc: str


def jpeg_request(encoded: bytes) -> bytes:
    """A serialised request to `classify`."""
    request = service_pb2.ModelInferRequest(model_name="classify")
    request.inputs.add(name="encoded", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(encoded)) + encoded)
    return request.SerializeToString()


def pixels_request(pixels: np.ndarray) -> bytes:
    """A serialised request to `alexnet`, of one image, uint8 [height, width, 3]."""
    request = service_pb2.ModelInferRequest(model_name="alexnet")
    request.inputs.add(name="images", datatype="UINT8", shape=[1, *pixels.shape])
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()


def grpc_load(addresses: Addresses, model: str, requests: Sequence[bytes], concurrent: int, seconds: float) -> Load:
    """Keep `concurrent` requests to `model` in flight, on as many connections as there are different ones.

    Raises:
        BenchError: h2load is missing or ended badly.
    """
    before = _counted(addresses.http, model)
    used = requests[: min(concurrent, len(requests))]
    shares = [concurrent // len(used) + (number < concurrent % len(used)) for number in range(len(used))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(used)) as pool:
        runs = [
            pool.submit(_h2load, addresses.grpc, Path(folder, str(number)), body, share, seconds)
            for number, (body, share) in enumerate(zip(used, shares, strict=True))
        ]
        times_ms = np.concatenate([run.result() for run in runs])
    answered = _counted(addresses.http, model) - before
    p50_ms, p99_ms = np.percentile(times_ms, [50, 99]) if len(times_ms) else (0.0, 0.0)
    return Load(answered / seconds, float(p50_ms), float(p99_ms), refused=max(0, len(times_ms) - answered))


def _h2load(address: str, base: Path, request: bytes, streams: int, seconds: float) -> np.ndarray:
    """One connection with `streams` requests in flight; milliseconds of each answer."""
    body, log = base.with_suffix(".body"), base.with_suffix(".log")
    body.write_bytes(struct.pack(">BI", 0, len(request)) + request)  # gRPC over HTTP/2: length-prefixed message
    command = [program("h2load"), "-t1", "-c1", f"-m{streams}", f"-D{max(1, round(seconds))}", f"--log-file={log}"]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = subprocess.run(
        [*command, *headers, "-d", str(body), f"http://{address}{METHOD}"], capture_output=True, text=True
    )
    if done.returncode or not log.is_file():
        raise BenchError(f"h2load on {address}: {(done.stderr or done.stdout).strip()}")
    rows = [line.split() for line in log.read_text().splitlines()]
    return np.array([int(microseconds) / 1e3 for _, _, microseconds in rows])


def _counted(http_address: str, model: str) -> int:
    """Images that the server says it has answered."""
    with urllib.request.urlopen(f"http://{http_address}/v2/models/{model}/stats", timeout=10) as answer:
        statistics = json.load(answer)["model_stats"]
    return sum(version["inference_count"] for version in statistics)
