"""The gateway as `alexnet-triton bench` and docs/connections.py run it; what they measure is not looked at."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_triton.loadtest.bench.config import IMAGES, ROOT, BenchConfig, prepare_images
from alexnet_triton.loadtest.bench.gateway import SlowCallers, compare_cost, running_gateway
from alexnet_triton.serving import Server
from tests.serving.tiny import jpeg


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BenchConfig:
    """One round of a second, with the tests' images."""
    images, folder = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("bench")
    for seed in range(IMAGES):
        (images / f"{seed}.jpg").write_bytes(jpeg(seed))
    config = BenchConfig(Path("not read"), folder, images, seconds=1, warm_up_s=1, repeats=1)
    prepare_images(config)
    return config


def test_both_sides_answer_every_request(tritons: list[Server], config: BenchConfig) -> None:
    http, grpc = tritons[0].http_address, tritons[0].grpc_address
    steps: list[str] = []
    with running_gateway(http, grpc, config.folder) as gateway:
        result = compare_cost(http, gateway, config, steps.append)
    rows = {row["target"]: row for row in result["rows"]}
    assert rows.keys() == {"directly", "through the gateway"}
    assert all(row["images_per_s"] > 0 and row["refused"] == row["failed"] == 0 for row in rows.values())
    assert steps == ["directly, round 1 of 1", "through the gateway, round 1 of 1"]


def test_slow_callers_stay_connected(tritons: list[Server], config: BenchConfig) -> None:
    with running_gateway(tritons[0].http_address, tritons[0].grpc_address, config.folder) as gateway:
        slow = SlowCallers(gateway, 10)
        assert asyncio.run(slow.accompany(lambda: slow.open)) == 10
    assert (slow.open, slow.opened) == (0, 10)


def test_many_callers_are_compared_with_64(config: BenchConfig, tiny_repository: Path) -> None:
    assert config.images
    paths = {"--repository": tiny_repository, "--images": config.images, "--folder": config.folder / "many"}
    brief = {"--connections": 64, "--seconds": 1, "--warm-up-s": 1, "--repeats": 1}
    words = [str(word) for pair in (paths | brief).items() for word in pair]
    script, figures = ROOT / "docs/connections.py", config.folder / "many.json"
    done = subprocess.run([sys.executable, script, *words, "--json", figures], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stage = json.loads(figures.read_text())["stages"]["connections"]
    assert len(stage["summary"]) == len(stage["ratios"]) == 7
    assert all(row["images_per_s"] > 0 and row["failed"] == 0 for row in stage["summary"])
    assert stage["ratios"]["of this server, HTTP at 64: this server, HTTP at 64"] == 1.0
