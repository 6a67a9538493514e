"""Stage `client`: a folder through `client/classify.py`, and 64 connections of the load generator, in turns."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from alexnet_triton.loadtest.bench import wrk
from alexnet_triton.loadtest.bench.config import ROOT, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.report import Rows, summarise
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, Triton, triton

CONCURRENCY, CONNECTIONS = 32, 64
GENERATOR = "load generator, HTTP"
COMMANDS = {"client/classify.py, gRPC": "grpc", "client/classify.py, HTTP": "http"}
SAMPLE_S = 0.25


def measure(config: BenchConfig, advance: Callable[[str], None]) -> dict[str, Any]:
    """Images a second of each, the command's from its start to its end, and the command's resident memory.

    Raises:
        BenchError: the command did not classify every image.
    """
    folder = _spread(config)
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        wrk.http_load(server.url, CONNECTIONS, config.warm_up_s, config.bodies, TRITON_HEADERS)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            seen = wrk.http_load(server.url, CONNECTIONS, config.seconds, config.bodies, TRITON_HEADERS)
            rows.append({"target": GENERATOR, "round": number, "connections": CONNECTIONS, **asdict(seen)})
            for target, scheme in COMMANDS.items():
                row = _classify(server, scheme, folder, config)
                rows.append({"target": target, "round": number, "connections": CONCURRENCY, **row})
    shutil.rmtree(folder)
    return {"rows": rows, "summary": summarise(rows), "ratios": ratios(rows)}


def _spread(config: BenchConfig) -> Path:
    """The images as `client_images` files, linked so that they take no room."""
    folder = (config.folder / "client_images").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bodies = sorted(config.bodies.glob("*.jpg"))
    for number in range(config.client_images):
        os.link(bodies[number % len(bodies)], folder / f"{number:06}.jpg")
    return folder


def _classify(server: Triton, scheme: str, folder: Path, config: BenchConfig) -> dict[str, float]:
    address = server.addresses.grpc if scheme == "grpc" else server.addresses.http
    output = config.folder / "client.jsonl"
    command = [sys.executable, str(ROOT / "client" / "classify.py"), "--recursive", str(folder)]
    command += ["--url", f"{scheme}://{address}", "--concurrency", str(CONCURRENCY), "--output", str(output)]
    started = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        samples, cpu_s = _watch(process)
        elapsed_s = time.perf_counter() - started
        complaints = process.stderr.read() if process.stderr else ""
    with output.open("rb") as lines:
        answered = sum(b'"top"' in line for line in lines)
    if process.returncode or answered != config.client_images:
        raise BenchError(f"{answered} of {config.client_images} images classified: {complaints[-300:].strip()}")
    return {
        "images_per_s": answered / elapsed_s,
        "cpu_ms_an_image": 1e3 * cpu_s / answered,
        "peak_mib": max(samples),
        "growth_mib": samples[-1] - samples[len(samples) // 4],
    }


def _watch(process: subprocess.Popen[str]) -> tuple[list[float], float]:
    """Resident MiB every `SAMPLE_S` until the command ends, and its seconds of processor time."""
    seen, samples, cpu_s = psutil.Process(process.pid), [0.0], 0.0
    while process.poll() is None:
        try:
            samples.append(seen.memory_info().rss / 2**20)
            times = seen.cpu_times()
            cpu_s = times.user + times.system
        except psutil.Error:
            break
        time.sleep(SAMPLE_S)
    process.wait()
    return samples[:-1] if len(samples) > 2 else samples, cpu_s  # the last may be of a process that is ending


def ratios(rows: Rows) -> dict[str, float]:
    """What the client reaches of the load generator's rate in the same run."""
    rates = {row["target"]: row["images_per_s"] for row in summarise(rows)}
    return {f"{target}, of the load generator": rates[target] / rates[GENERATOR] for target in COMMANDS}
