"""The autoscaler's queries on a real Prometheus that scrapes real Tritons: they count the requests in flight."""

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alexnet_triton.client import Classifier
from alexnet_triton.serving import Server
from alexnet_triton.serving.launch import free_port
from docs.queues import Service
from docs.real_queues import slow_repository
from tests.kubernetes.chart import NAMESPACE
from tests.kubernetes.test_autoscaling import QUERIES, RECORD, SERVICE, group
from tests.serving.tiny import jpeg, running_server
from tests.tools import need
from tests.waiting import wait_for

CALLERS = (12, 4)  # of each Triton: more than its instances take at once, and one that is less busy
# So slow that callers are nearly always in a queue or computed: their own time and the way are little beside it.
SLOW = Service(tuple(0.4 + 0.1 * n for n in range(1, 17)), instances=2, max_wait_s=60)
WINDOW = "[8s]"  # instead of a minute


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("pods")
    one = slow_repository(folder, SLOW)
    two = Path(shutil.copytree(one, folder / "two"))
    settings = {"start_timeout_s": 120}
    with (
        running_server(one, log=folder / "1.log", **settings) as first,
        running_server(two, log=folder / "2.log", **settings) as second,
    ):
        yield [first, second]


@contextmanager
def calling(server: Server, callers: int) -> Iterator[None]:
    """Callers, of whom each has one request in flight."""
    over = threading.Event()

    def ask(classifier: Classifier) -> None:
        while not over.is_set():
            classifier.classify(jpeg(1))

    with Classifier(f"grpc://{server.grpc_address}", concurrency=callers, timeout_s=120) as classifier:
        threads = [threading.Thread(target=ask, args=(classifier,)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


@contextmanager
def prometheus(tritons: list[Server], folder: Path) -> Iterator[str]:
    """Its address. The series have the labels that the chart's ServiceMonitor gives them; a rule is the chart's."""
    rules = json.dumps({"groups": [{**group(), "interval": "1s"}]})
    (folder / "rules.yml").write_text(re.sub(r"\[1m\]", WINDOW, rules))
    pods = [
        {
            "targets": [each.metrics_address],
            "labels": {"namespace": NAMESPACE, "service": SERVICE, "pod": f"pod-{number}"},
        }
        for number, each in enumerate(tritons)
    ]
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "triton", "static_configs": pods}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([need("prometheus"), *words, f"--web.listen-address={address}"], stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def query(address: str, expression: str) -> float:
    """The one value of an expression, 0 where it has none yet."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


@pytest.mark.long
def test_the_queries_count_the_requests_in_flight(tritons: list[Server], tmp_path: Path) -> None:
    """Of both Tritons together, those that wait and those that are computed; and nothing once nobody asks."""
    expected = sum(CALLERS)
    with prometheus(tritons, tmp_path) as address:
        with calling(tritons[0], CALLERS[0]), calling(tritons[1], CALLERS[1]):
            for name, expression in QUERIES.items():
                asked = expression().replace("[1m]", WINDOW)
                # Between two scrapes one and the same request may wait and be computed: hence the margin.
                wait_for(lambda asked=asked: 0.7 * expected < query(address, asked) < 1.3 * expected, 60)
                assert ("rate(" in asked) == (name == "keda")
        wait_for(lambda: query(address, f"sum({RECORD})") < 0.1, 60)
