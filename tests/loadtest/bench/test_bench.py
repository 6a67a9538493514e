"""The benchmark as a person runs it, briefly, on a tiny network: what it counts, and what it says when it cannot."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.loadtest.bench import photographs
from alexnet_triton.loadtest.bench.config import ROOT, BenchError
from alexnet_triton.loadtest.bench.report import summarise
from tests.serving.tiny import build_repository, jpeg


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(photographs.COUNT):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    return folder


def _bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alexnet_triton", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_stages_are_measured_and_added_to_one_file(photographs: Path, tmp_path: Path) -> None:
    repository, folder = build_repository(tmp_path / "built"), tmp_path / "bench"
    common = ("--repository", repository, "--images", photographs, "--folder", folder, "--json", folder / "bench.json")
    brief = (
        "--seconds",
        "1",
        "--warm-up-s",
        "1",
        "--repeats",
        "1",
        "--connections",
        "4",
        "--overload-s",
        "2",
        "--kills",
        "0",
        "--client-images",
        "200",
    )
    targets = ("--target", "bound, no server", "--target", "this server, HTTP")
    for stages in (("served", "client"), ("overload", "faults")):
        done = _bench(*stages, *common, *brief, *targets)
        assert done.returncode == 0, done.stderr
    stages = json.loads((folder / "bench.json").read_text())["stages"]
    assert stages.keys() == {"served", "client", "overload", "faults"}
    rates = {(row["target"], row["connections"]): row for row in stages["served"]["summary"]}
    assert rates.keys() == {("bound, no server", 0), ("this server, HTTP", 4), ("this server, gRPC", 4)}
    assert all(row["images_per_s"] > 0 and not row.get("failed") for row in rates.values())
    with Image.open(folder / "served.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    client = {row["target"]: row for row in stages["client"]["summary"]}
    assert {row["connections"] for name, row in client.items() if "classify.py" in name} == {32}
    assert all(row["images_per_s"] > 0 for row in client.values())
    overload = stages["overload"]
    assert overload["answered_per_s"] > 0
    assert overload["other"] == 0
    faults = stages["faults"]
    assert (faults["wrong"], faults["left_in_shared_memory"], faults["left_processes"]) == (0, [], 0)
    assert "cut" not in faults["in_flight_at_sigterm_and_not_answered"]


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    done = _bench("served", "--repository", tmp_path / "nowhere", "--folder", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"bench: no repository in {tmp_path}/nowhere: run `make export`\n")
    with pytest.raises(BenchError, match="0 JPEGs in"):
        photographs.prepare(tmp_path / "images", tmp_path, tmp_path)


def test_the_median_of_the_rounds_is_told_with_its_spread() -> None:
    rows = [{"target": "x", "connections": 4, "round": n, "images_per_s": rate} for n, rate in enumerate([30, 10, 20])]
    assert summarise(rows) == [{"target": "x", "connections": 4, "images_per_s": 20, "lowest": 10, "highest": 30}]
