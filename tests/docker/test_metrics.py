"""The gateway's metrics: what Prometheus reads of it is what its log says."""

import re
import subprocess
import urllib.error
import urllib.request

import pytest

from alexnet_triton.serving.launch import free_port
from tests.docker.gateway import ROOT, Gateway
from tests.docker.test_gateway import grpc_infer, grpc_stub
from tests.serving.tiny import jpeg
from tests.tools import need

SECONDS = "alexnet_gateway_seconds"


def read(port: int) -> dict[str, float]:
    """Series and their values; Prometheus' own checker reads them too."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    done = subprocess.run([need("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    assert "error while linting" not in done.stderr, done.stderr
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def test_answers_are_counted_over_all_workers(new_gateway: type[Gateway]) -> None:
    port = free_port()
    with new_gateway(metrics=f"127.0.0.1:{port}", workers=2) as gateway:
        answers = [gateway.infer(jpeg(seed)) for seed in range(6)]
        with grpc_stub(gateway) as stub:
            stub.ModelInfer(grpc_infer(jpeg(1)), metadata=gateway.metadata())
        refused = gateway.infer(jpeg(1), key="0" * 64)
        assert gateway.infer(b"no image").status == 400
        gateway.ask("GET", "/v2/health/ready")
        entries = [gateway.entry(answer) for answer in [*answers, refused]]
        found = read(port)
    assert found['alexnet_gateway_answers_total{protocol="http",status="200"}'] == 6
    assert found['alexnet_gateway_answers_total{protocol="http",status="401"}'] == 1
    assert found['alexnet_gateway_answers_total{protocol="http",status="400"}'] == 1
    assert found['alexnet_gateway_answers_total{protocol="grpc",status="0"}'] == 1
    assert found[f'{SECONDS}_count{{protocol="http"}}'] == 6
    assert found[f'{SECONDS}_count{{protocol="grpc"}}'] == 1
    took_s = [float(entry["triton_seconds"]) for entry in entries[:6]]
    assert found[f'{SECONDS}_sum{{protocol="http"}}'] == pytest.approx(sum(took_s))
    buckets = re.compile(rf'{SECONDS}_bucket\{{protocol="http",le="(.*)"\}}')
    for name, count in found.items():
        if bound := buckets.fullmatch(name):
            assert count == sum(seconds <= float(bound[1]) for seconds in took_s), name


def test_the_rules_ask_for_what_is_there(new_gateway: type[Gateway]) -> None:
    """Before the first answer too."""
    port = free_port()
    with new_gateway(metrics=f"127.0.0.1:{port}"):
        found = {name.partition("{")[0] for name in read(port)}
    rules = (ROOT / "docker/prometheus/rules.yml").read_text()
    assert set(re.findall(r"alexnet_gateway_\w+", rules)) <= found


def test_a_second_try_counts_with_the_first(new_gateway: type[Gateway]) -> None:
    """As one answer, which took both."""
    port, dead = free_port(), f"127.0.0.1:{free_port()}"
    one = new_gateway().environment["TRITON_HTTP"].split()[0]
    with new_gateway(metrics=f"127.0.0.1:{port}", triton_http=[dead, one]) as gateway:
        answers = [gateway.infer(jpeg(seed)) for seed in range(4)]
        tries = [str(gateway.entry(answer)["triton_seconds"]).split(", ") for answer in answers]
        found = read(port)
    assert max(map(len, tries)) == 2
    assert found[f'{SECONDS}_count{{protocol="http"}}'] == 4
    assert found[f'{SECONDS}_sum{{protocol="http"}}'] == pytest.approx(
        sum(float(each) for both in tries for each in both)
    )


def test_metrics_alone_are_there(new_gateway: type[Gateway]) -> None:
    """On their port, and on no other."""
    port = free_port()
    with new_gateway(metrics=f"127.0.0.1:{port}") as gateway:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready")
        assert gateway.ask("GET", "/metrics").status == 404
