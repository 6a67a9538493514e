"""The benchmark as a person runs it, briefly, on a tiny network: what it counts, and how it fails."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from PIL import Image

from alexnet_triton.loadtest.bench.config import IMAGES, ROOT, BenchConfig, BenchError, prepare_images
from alexnet_triton.loadtest.bench.peers import CORES
from alexnet_triton.loadtest.bench.profile import name_process
from alexnet_triton.loadtest.bench.report import add_to_report, summarise
from alexnet_triton.loadtest.bench.tune import alternatives, apply_settings, read_settings
from alexnet_triton.loadtest.bench.wrk import http_load
from alexnet_triton.loadtest.variants import edit_in_place
from tests.serving.tiny import build_repository, jpeg

BRIEF = {
    "seconds": 1,
    "warm-up-s": 1,
    "repeats": 1,
    "connections": 4,
    "overload-s": 1,
    "client-images": 100,
    "profile-connections": 8,
}
TARGETS = ["--target", "bound, no server", "--target", "this server, HTTP"]
LOCK = ROOT / "loadtest/bench/requirements.lock"
STAGES = ("served", "client", "overload", "profile")


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alexnet_triton", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of every stage that is looked at below."""
    images, folder = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("bench")
    for seed in range(IMAGES):
        (images / f"{seed}.jpg").write_bytes(jpeg(seed))
    repository = build_repository(tmp_path_factory.mktemp("built") / "model_repository")
    paths = ("--repository", repository, "--images", images, "--folder", folder, "--json", folder / "bench.json")
    brief = [word for name, value in BRIEF.items() for word in (f"--{name}", str(value))]
    apart = ["--apart"] if CORES > 1 else []
    done = bench("bench", *STAGES, *paths, *brief, *TARGETS, *apart)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def stages(measured: Path) -> dict[str, Any]:
    return json.loads((measured / "bench.json").read_text())["stages"]


def test_every_stage_says_where_and_how_it_was_measured(stages: dict[str, Any]) -> None:
    assert tuple(stages) == STAGES
    for stage in stages.values():
        assert " cores" in stage["hardware"]
        assert stage["command"].startswith("alexnet-triton bench served ")
        assert stage["versions"]["numpy"] == np.__version__
        assert stage["images"].startswith("100 photographs of photographs")


def test_served_measures_every_target(stages: dict[str, Any], measured: Path) -> None:
    rates = {(row["target"], row["connections"]): row for row in stages["served"]["summary"]}
    assert rates.keys() == {("bound, no server", 0), ("this server, HTTP", 4), ("this server, gRPC", 4)}
    assert all(row["images_per_s"] > 0 and not row.get("failed") for row in rates.values())
    with Image.open(measured / "served.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_client_is_measured_beside_the_generator(stages: dict[str, Any]) -> None:
    client = {row["target"]: row for row in stages["client"]["summary"]}
    assert {row["connections"] for name, row in client.items() if "classify.py" in name} == {32}
    assert all(row["images_per_s"] > 0 for row in client.values())


def test_overload_is_answered_or_refused(stages: dict[str, Any]) -> None:
    overload = stages["overload"]
    assert overload["answered_per_s"] > 0
    assert overload["server_cores"] == max(1, CORES - 1)
    # The tests beside this one may keep a connection waiting for longer than the generator does; none is cut.
    assert overload["other"].keys() <= {"timeout"}, (overload["other"], overload["events"])


def test_profile_adds_up(stages: dict[str, Any], measured: Path) -> None:
    """Each process and each step once, and no more core-seconds than there were."""
    profile = stages["profile"]
    rows = {row["target"]: row for row in profile["summary"]}
    processes = {"watcher", "supervisor", "tritonserver", "stub of preprocess", "stub of alexnet", "load generator"}
    layers = {f"network: {kind}" for kind in ("Convert", "ReduceMean", "FullyConnected", "Softmax", "between layers")}
    under_load = {name for name, row in rows.items() if row["where"] == "under load"}
    assert (under_load, rows.keys() - under_load) == (processes, {"decode", "resize", *layers})
    assert all(row["core_ms"] >= 0 for row in rows.values())
    busy = ("stub of preprocess", "load generator", "decode", "resize", "network: ReduceMean")
    assert all(rows[name]["core_ms"] > 0 for name in busy)
    cores = sum(rows[name]["core_ms"] for name in processes) * profile["load"]["images_per_s"] / 1e3
    assert 0 < cores < 2 * CORES  # exact up to the time between looking at the processes and at the clock
    assert sum(layer["core_ms"] for layer in profile["layers"]) == pytest.approx(
        sum(rows[name]["core_ms"] for name in layers) - rows["network: between layers"]["core_ms"]
    )
    with Image.open(measured / "profile.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ((".../triton_python_backend_stub", "/run/models/alexnet/2/model.py", "shm"), "stub of alexnet"),
        (("/usr/bin/python", "-m", "alexnet_triton.serving.supervisor", "8.0", "x"), "supervisor"),
        (("/opt/tritonserver/bin/tritonserver", "--model-repository=/models"), "tritonserver"),
        ((), "ended"),
    ],
)
def test_a_process_is_named_by_its_command_line(command: tuple[str, ...], name: str) -> None:
    assert name_process(command) == name


def test_a_stage_replaces_only_its_own_result(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    for stage, value in (("served", 1), ("client", 2), ("served", 3)):
        add_to_report(path, stage, {"value": value})
    stages = json.loads(path.read_text())["stages"]
    assert {name: stage["value"] for name, stage in stages.items()} == {"served": 3, "client": 2}


@pytest.mark.parametrize("command", [("bench", "served"), ("bench", "gateway-slow"), ("tune",)])
def test_a_missing_repository_is_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = bench(*command, "--repository", tmp_path / "nowhere", "--folder", tmp_path)
    line = f"alexnet-triton {command[0]}: no repository in {tmp_path}/nowhere: run `make export`\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize("words", [("nothing",), ("served", "--seconds", "0")])
def test_usage_is_one_line(words: tuple[str, ...]) -> None:
    done = bench("bench", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    config = BenchConfig(repository=tmp_path, folder=tmp_path / "bench", images=tmp_path)
    with pytest.raises(BenchError, match="0 JPEGs in"):
        prepare_images(config)


def test_a_summary_has_the_median_of_the_rounds_and_their_spread() -> None:
    rows = [{"target": "x", "connections": 4, "round": n, "images_per_s": rate} for n, rate in enumerate([30, 10, 20])]
    assert summarise(rows) == [{"target": "x", "connections": 4, "images_per_s": 20, "lowest": 10, "highest": 30}]


def test_after_a_load_the_server_works_for_nobody_of_it(tmp_path: Path) -> None:
    """One that answers in turn, also those who have left, as Triton does over HTTP: another second of work here."""
    for number in range(IMAGES):
        (tmp_path / f"{number:03}.jpg").write_bytes(b"no image")
    answered: list[float] = []

    class InTurn(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(0.05)
            answered.append(time.monotonic())
            self.send_response(503 if len(answered) % 2 else 200)  # one that is refused asks again
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), InTurn)
    server.socket.listen(32)  # as many wait to be taken
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        seen = http_load(f"http://127.0.0.1:{server.server_port}/", 20, 1, tmp_path, {})
        ended = len(answered)
        time.sleep(0.3)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen.refused > 0
    assert len(answered) == ended > seen.refused + seen.images_per_s + 10


def test_a_tuned_setting_is_written_and_read_again(tmp_path: Path) -> None:
    repository = build_repository(tmp_path / "model_repository")
    first = read_settings(repository)
    for change in alternatives(first):
        changed = replace(first, **change)
        assert changed != first
        edit_in_place(repository, partial(apply_settings, changed))
        assert read_settings(repository) == changed


def test_peers_import_nothing_that_their_environment_lacks() -> None:
    """Only what they import at once: `bench` calls none of the rest there. What Python starts with is not theirs."""
    before = "import json, sys; before = {name.split('.')[0] for name in sys.modules}"
    report = "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules} - before)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{before}; import alexnet_triton.loadtest.bench.peers; {report}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    has = {"alexnet-triton", "setuptools"} | {
        canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", LOCK.read_text(), re.MULTILINE)
    }
    owners = {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}
    loaded = {module: owners[module] for module in json.loads(done.stdout) if module in owners}
    assert "numpy" in loaded
    assert [module for module, names in loaded.items() if not names & has] == []
