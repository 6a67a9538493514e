"""Settings of a peer, found by measuring. A server that reads the same settings stands for it: the peers' own
environment is not here."""

import json
import sys
import urllib.request
from pathlib import Path

import pytest

from alexnet_triton.loadtest.bench import tune
from alexnet_triton.loadtest.bench.config import IMAGES, BenchConfig, BenchError, prepare_images
from alexnet_triton.loadtest.bench.peers import CORES, Settings
from alexnet_triton.loadtest.bench.servers import TUNED_PEERS, peer, read_peer_settings
from tests.serving.tiny import jpeg

PEER = "FastAPI, fp32"
SERVER = f"""#!{sys.executable}
import json, os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

settings = json.loads(os.environ["BENCH_SETTINGS"])

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.02 if settings["workers"] == {2 * CORES} else 0.5)
        answer = json.dumps({{"probability": 1.0, **settings}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def config(tmp_path: Path, tiny_repository: Path) -> BenchConfig:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed in range(IMAGES):
        (photographs / f"{seed}.jpg").write_bytes(jpeg(seed, 32, 32))
    python = tmp_path / "python"
    python.write_text(SERVER)
    python.chmod(0o755)
    made = BenchConfig(
        tiny_repository, tmp_path, photographs, peers_python=python, peers=(PEER,), seconds=1, warm_up_s=1, repeats=1
    )
    prepare_images(made)
    return made


def test_a_peer_is_tuned_and_served_with_what_was_found(config: BenchConfig) -> None:
    result = tune.measure(config, lambda step: None)
    assert [row["workers"] for row in result["summary"]] == [CORES, CORES + 1, 2 * CORES]
    assert result["written"] == {PEER: f"workers {2 * CORES}"}
    assert result["ratios"][f"{PEER}: times the rate of before"] > 1.5
    assert read_peer_settings(config)[PEER] == Settings(workers=2 * CORES)
    with peer(PEER, config) as url, urllib.request.urlopen(url, b"image") as answer:
        assert json.load(answer)["workers"] == 2 * CORES


def test_a_damaged_file_is_one_line(config: BenchConfig) -> None:
    for text in ("[]", "{", json.dumps({PEER: {"wings": 2}})):
        (config.folder / TUNED_PEERS).write_text(text)
        with pytest.raises(BenchError, match=r"peers\.json: damaged"):
            read_peer_settings(config)
