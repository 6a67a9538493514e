"""Load from programs that cost the measured machine little: wrk over HTTP, h2load over gRPC. Both are closed loops.

h2load sends requests that were serialised beforehand, for a fifth of what a Python client costs. It reads neither the
body of an answer nor gRPC's status in the trailers, so the server's own statistics say how many were answered.
"""

import json
import shutil
import ssl
import struct
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from alexnet_triton.common.infer_request import HEADER_LENGTH, build_header, bytes_tensor
from alexnet_triton.loadtest.bench.config import BenchError
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, Triton

SCRIPT = Path(__file__).with_name("post.lua")
DEBIAN_PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
IDLE_TIMEOUT_S = 60.0
HEADER_BYTES = 400  # of JSON before the images of a request of several


@dataclass(frozen=True)
class Load:
    """What a load generator saw. The percentiles are of all answers, refusals included."""

    connections: int  # or requests in flight; 0 where there is no server
    images_per_s: float  # answered, not refused
    p50_ms: float
    p99_ms: float
    refused: int = 0
    failed: int = 0  # connections cut, timeouts


def jpeg_load(server: Triton, connections: int, seconds: float, bodies: Path) -> Load:
    """`http_load` of this project's server."""
    return http_load(server.url, connections, seconds, bodies, TRITON_HEADERS)


def http_load(
    url: str,
    connections: int,
    seconds: float,
    bodies: Path,
    headers: Mapping[str, str],
    keys: Sequence[str] = (),
    obey: bool = False,
) -> Load:
    """POST the files of `bodies` to `url`, on each connection one after another; the server is idle when this returns.

    Args:
        keys: callers' Authorization headers, which take turns.
        obey: a refused caller waits for Retry-After, or a second where the refusal names none, as Triton's does.

    Raises:
        BenchError: wrk is missing or failed, or the server answers no more.
    """
    pairs = [text for pair in (*headers.items(), *(("Authorization", key) for key in keys)) for text in pair]
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s", "-s", str(SCRIPT)]
    done = _run("wrk", *options, url, "--", str(bodies), "obey" if obey else "insist", *pairs)
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        raise BenchError(f"wrk on {url}: {(done.stderr or done.stdout).strip() or 'no result'}")
    key = {"Authorization": keys[0]} if keys else {}
    _wait_until_idle(url, (bodies / "000.jpg").read_bytes(), {**headers, **key})
    seen = json.loads(result[0].removeprefix("RESULT "))
    rate = (seen["answers"] - seen["refused"]) / seen["seconds"]
    return Load(connections, rate, seen["p50_ms"], seen["p99_ms"], seen["refused"], seen["failed"])


def _wait_until_idle(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Ask for one image more, and wait for its answer.

    Servers go on to work for the callers whose connections wrk has closed, for seconds after a thousand connections;
    whoever is measured next would wait behind them.
    """
    unverified = ssl.create_default_context()  # as wrk: what is measured is on this machine
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream", **headers})
    until = time.monotonic() + IDLE_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=IDLE_TIMEOUT_S, context=unverified) as answer:
                answer.read()
            return
        except OSError as error:  # refused, most often
            if time.monotonic() > until:
                raise BenchError(f"{url} answers no more: {error}") from error
            time.sleep(0.1)


def write_batches(folder: Path, groups: Sequence[Sequence[bytes]]) -> tuple[Path, dict[str, str]]:
    """Fill a folder with requests of several images, one a file, as many images in each, for `http_load`.

    Returns:
        The folder and the header to send: every file begins with JSON of the same length, padded with blanks.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, group in enumerate(groups):
        tensor: dict[str, Any] = {"name": "encoded", "datatype": "BYTES", "shape": [len(group), 1]}
        data = bytes_tensor(group)
        header = build_header(tensor, len(data), {"name": "probabilities"}).ljust(HEADER_BYTES)
        (folder / f"{number:03}.jpg").write_bytes(header + data)
    return folder.absolute(), {HEADER_LENGTH: str(HEADER_BYTES)}


def jpeg_request(images: Sequence[bytes]) -> bytes:
    """A serialised request to `classify`, of encoded images."""
    return _serialize("classify", "encoded", "BYTES", (len(images), 1), bytes_tensor(images))


def pixels_request(model: str, pixels: np.ndarray) -> bytes:
    """A serialised request to a network, of one image, uint8 [height, width, 3]."""
    return _serialize(model, "images", "UINT8", (1, *pixels.shape), pixels.tobytes())


def _serialize(model: str, name: str, datatype: str, shape: Sequence[int], content: bytes) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[content])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request.SerializeToString()


def grpc_load(server: Triton, model: str, requests: Sequence[bytes], concurrent: int, seconds: float) -> Load:
    """Keep `concurrent` requests to `model` in flight, on a connection for each of the different ones.

    Raises:
        BenchError: h2load is missing or failed.
    """
    before = count_answers(server, model)
    used = requests[: min(concurrent, len(requests))]
    shares = [concurrent // len(used) + (number < concurrent % len(used)) for number in range(len(used))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(used)) as pool:
        runs = [
            pool.submit(_h2load, server.grpc, Path(folder, str(number)), body, share, seconds)
            for number, (body, share) in enumerate(zip(used, shares, strict=True))
        ]
        times_ms = np.concatenate([run.result() for run in runs])
    answered = count_answers(server, model) - before
    p50_ms, p99_ms = np.percentile(times_ms, [50, 99]) if len(times_ms) else (0.0, 0.0)
    refused = max(0, len(times_ms) - answered)
    return Load(concurrent, answered / seconds, float(p50_ms), float(p99_ms), refused)


def _h2load(address: str, base: Path, request: bytes, streams: int, seconds: float) -> np.ndarray:
    """One connection with `streams` requests in flight; returns the milliseconds of each answer."""
    body, log = base.with_suffix(".body"), base.with_suffix(".log")
    body.write_bytes(struct.pack(">BI", 0, len(request)) + request)  # gRPC over HTTP/2: length-prefixed message
    options = ["-t1", "-c1", f"-m{streams}", f"-D{max(1, round(seconds))}", f"--log-file={log}", "-d", str(body)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = _run("h2load", *options, *headers, f"http://{address}{GRPC_METHOD}")
    if done.returncode or not log.is_file():
        raise BenchError(f"h2load on {address}: {(done.stderr or done.stdout).strip()}")
    rows = [line.split() for line in log.read_text().splitlines()]
    return np.array([int(microseconds) / 1e3 for _, _, microseconds in rows])


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = shutil.which(program)
    if path is None:
        raise BenchError(f"no {program}: install Debian's package {DEBIAN_PACKAGES[program]}")
    return subprocess.run([path, *arguments], capture_output=True, text=True)


def count_answers(server: Triton, model: str) -> int:
    """Images that the server has answered, by its own statistics."""
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats", timeout=10) as answer:
        statistics = json.load(answer)["model_stats"]
    return sum(version["inference_count"] for version in statistics)
