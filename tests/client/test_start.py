"""What the command loads before it has anything to do: `--help` and a refusal come at once."""

import subprocess
import sys

import pytest

ENGINES = {"torch", "onnx", "onnxruntime", "openvino", "matplotlib"}
HEAVY = {"tritonclient", "grpc", "aiohttp", "numpy", "PIL", "rich", "asyncio"}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("alexnet_triton.client", ENGINES | HEAVY),
        ("alexnet_triton.client.cli", ENGINES | HEAVY),
        ("alexnet_triton.__main__", ENGINES | HEAVY),
        ("alexnet_triton.client.classifier", ENGINES | {"tritonclient", "grpc", "aiohttp"}),
    ],
)
def test_import(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert unwanted.isdisjoint(loaded)


@pytest.mark.parametrize(("scheme", "other"), [("grpc", "aiohttp"), ("http", "grpc")])
def test_only_the_protocol_in_use_is_loaded(scheme: str, other: str) -> None:
    program = (
        "import asyncio, sys; from alexnet_triton.client.classifier import AsyncClassifier\n"
        "async def main():\n"
        f"    async with AsyncClassifier('{scheme}://127.0.0.1:1'): pass\n"
        "asyncio.run(main()); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert other not in loaded
