"""Stage `client`: a folder through `client/classify.py` and, in turn, the load generator at 64 connections."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from alexnet_triton.loadtest.bench.config import ROOT, Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.report import Rows, summarise
from alexnet_triton.loadtest.bench.servers import Triton, triton
from alexnet_triton.loadtest.bench.wrk import jpeg_load

CONCURRENCY, CONNECTIONS = 32, 64
GENERATOR = "load generator, HTTP"
COMMANDS = {"client/classify.py, gRPC": "grpc", "client/classify.py, HTTP": "http"}
SAMPLE_S = 0.25


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Images a second of each (the command's from its start to its end), and the command's resident memory.

    Raises:
        BenchError: the command did not classify every image.
    """
    folder = _link_images(config)
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        jpeg_load(server, CONNECTIONS, config.warm_up_s, config.bodies)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            seen = jpeg_load(server, CONNECTIONS, config.seconds, config.bodies)
            rows.append({"target": GENERATOR, "round": number, "connections": CONNECTIONS, **asdict(seen)})
            for target, scheme in COMMANDS.items():
                row = _classify(server, scheme, folder, config)
                rows.append({"target": target, "round": number, "connections": CONCURRENCY, **row})
    shutil.rmtree(folder)
    summary = summarise(rows)
    rates = {row["target"]: row["images_per_s"] for row in summary}
    ratios = {f"{target}, of the load generator": rates[target] / rates[GENERATOR] for target in COMMANDS}
    return {"rows": rows, "summary": summary, "ratios": ratios}


def _link_images(config: BenchConfig) -> Path:
    """A folder of `client_images` files: links to the JPEGs, which take no room."""
    folder = (config.folder / "client_images").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bodies = sorted(config.bodies.glob("*.jpg"))
    for number in range(config.client_images):
        os.link(bodies[number % len(bodies)], folder / f"{number:06}.jpg")
    return folder


def _classify(server: Triton, scheme: str, folder: Path, config: BenchConfig) -> dict[str, float]:
    address = server.grpc if scheme == "grpc" else server.http
    output = config.folder / "client.jsonl"
    command = [sys.executable, str(ROOT / "client" / "classify.py"), "--recursive", str(folder)]
    command += ["--url", f"{scheme}://{address}", "--concurrency", str(CONCURRENCY), "--output", str(output)]
    started = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        samples_mib, cpu_s = _watch(process)
        elapsed_s = time.perf_counter() - started
        complaints = process.stderr.read() if process.stderr else ""
    with output.open("rb") as lines:
        answered = sum(b'"top"' in line for line in lines)
    if process.returncode or answered != config.client_images:
        raise BenchError(f"{answered} of {config.client_images} images classified: {complaints[-300:].strip()}")
    return {
        "images_per_s": answered / elapsed_s,
        "cpu_ms_an_image": 1e3 * cpu_s / answered,
        "peak_mib": max(samples_mib),
        "growth_mib": samples_mib[-1] - samples_mib[len(samples_mib) // 4],
    }


def _watch(process: subprocess.Popen[str]) -> tuple[list[float], float]:
    """Resident MiB every `SAMPLE_S` until the command ends, and its seconds of processor time."""
    seen, samples_mib, cpu_s = psutil.Process(process.pid), [0.0], 0.0
    while process.poll() is None:
        try:
            samples_mib.append(seen.memory_info().rss / 2**20)
            times = seen.cpu_times()
            cpu_s = times.user + times.system
        except psutil.Error:
            break
        time.sleep(SAMPLE_S)
    process.wait()
    return samples_mib[:-1] if len(
        samples_mib
    ) > 2 else samples_mib, cpu_s  # the last may show a process that is ending
