"""The dashboard's queries, answered by a real Prometheus that scrapes a real Triton and its watcher under traffic."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from alexnet_triton.client import BadImage, Classifier
from alexnet_triton.common.provenance import gpu_names
from alexnet_triton.serving import Server
from alexnet_triton.serving.launch import free_port
from alexnet_triton.serving.watch import MetricsServer, Watcher
from tests.docker.gateway import ROOT
from tests.serving.tiny import jpeg
from tests.tools import need

DASHBOARD = json.loads((ROOT / "docker/grafana/dashboard.json").read_text())
TARGETS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
RULES = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text())["groups"][0]["rules"]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
# https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md#gpu-metrics
GPU_ONLY = {
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
}
# Of images from 26.01 on: core's metric_model_reporter.cc.
NEWER_ONLY = {"nv_inference_first_response_histogram_ms_bucket"}


def names(expression: str) -> set[str]:
    """Metrics that an expression asks for."""
    return set(re.findall(r"\b(?:nv|alexnet)_\w+|\b\w+:\w+:\w+\b", expression))


class Monitored:
    """A Prometheus on one Triton, with the project's rules and a quicker pace."""

    def __init__(self, metrics: str, folder: Path) -> None:
        self.metrics = metrics
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(ROOT / "docker/prometheus/rules.yml")]
        (job, _) = config["scrape_configs"]
        config["scrape_configs"] = [job]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [metrics]}]
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = [
            need("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
        ]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        address = f"{self.address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=10) as reply:
            return json.load(reply)["data"]["result"]

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if self.query(expression):
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"Prometheus never had {expression}")


@pytest.fixture(scope="module")
def monitored(tritons: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    metrics = MetricsServer("127.0.0.1", 0, Watcher(tritons[0], lambda *_, **__: None))
    running = Monitored(metrics.address, tmp_path_factory.mktemp("prometheus"))
    over = threading.Event()

    def traffic() -> None:
        """Sixteen images at once, then a damaged one, so that there are failures to be seen."""
        with Classifier(f"grpc://{tritons[0].grpc_address}") as classifier:
            while not over.wait(0.1):  # a rate is a rate, and the cores are others' too
                list(classifier.classify_many([jpeg(seed) for seed in range(16)]))
                with contextlib.suppress(BadImage):
                    classifier.classify(jpeg(1)[:400])

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        running.wait_for('rate(nv_inference_count{model="classify"}[1m]) > 0')
        running.wait_for('model_reason:nv_inference_request_failure:rate1m{model="classify"} > 0')
        yield running
    finally:
        over.set()
        thread.join()
        running.process.terminate()
        running.process.wait()
        metrics.close()


@pytest.mark.parametrize(("title", "expression"), TARGETS, ids=[title for title, _ in TARGETS])
def test_query_is_answered(monitored: Monitored, title: str, expression: str) -> None:
    """With data, except where it asks for a GPU's figures on a machine without one."""
    has_data = bool(monitored.query(expression))
    assert has_data == (bool(gpu_names()) if names(expression) & GPU_ONLY else True), title


def test_every_metric_exists(monitored: Monitored) -> None:
    """In what Triton and the watcher say, recorded, or of a GPU or newer Triton; test_metrics.py has the gateway's."""
    with urllib.request.urlopen(f"http://{monitored.metrics}/metrics", timeout=10) as reply:
        found = set(re.findall(r"^(\w+)[{ ]", reply.read().decode(), re.MULTILINE))
    asked = set[str]().union(
        *(names(expression) for _, expression in TARGETS), *(names(rule["expr"]) for rule in RULES)
    )
    others = {name for name in asked if name.startswith("alexnet_gateway_")}
    assert asked - others <= found | RECORDED | GPU_ONLY | NEWER_ONLY


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def draw(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "docs/draw_dashboard.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_picture(monitored: Monitored, tmp_path: Path) -> None:
    done = draw(tmp_path / "dashboard.png", "--prometheus", monitored.address, "--minutes", 1)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "dashboard.png") as picture:
        assert picture.width > 1000


def test_picture_without_prometheus(tmp_path: Path) -> None:
    done = draw(tmp_path / "dashboard.png", "--prometheus", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "127.0.0.1" in line
