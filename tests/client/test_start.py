"""How soon the command is there: the report (-rP, or --junitxml) has the figures."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import ROOT, classify
from embedded_triton import Triton

RUNS = 5
HEAVY = {"torch", "tritonclient", "grpc", "aiohttp", "numpy", "PIL", "rich", "asyncio"}


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "module",
    ["client", "alexnet_triton.client.cli", "alexnet_triton.client.classifier", "alexnet_triton.client.classifier"],
)
def test_import(module: str, record_property: Callable[[str, object], None]) -> None:
    empty = statistics.median(seconds([sys.executable, "-c", ""]) for _ in range(RUNS))
    whole = statistics.median(seconds([sys.executable, "-c", f"import {module}"]) for _ in range(RUNS))
    record_property(f"import_{module}_s", round(whole - empty, 3))
    print(f"import {module}: {whole - empty:.3f} s beside {empty:.3f} s for Python itself")
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    light = module in ("client", "alexnet_triton.client.cli")
    assert HEAVY.isdisjoint(loaded) if light else {"torch", "tritonclient", "grpc", "aiohttp"}.isdisjoint(loaded)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_first_answer(
    scheme: str, triton: Triton, pictures: list[Path], record_property: Callable[[str, object], None]
) -> None:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        done = classify(pictures[0], "--url", triton.urls[scheme])
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    record_property(f"first_answer_{scheme}_s", round(statistics.median(times), 3))
    print(f"first answer over {scheme}: {statistics.median(times):.3f} s, the slowest of {RUNS} {max(times):.3f} s")
