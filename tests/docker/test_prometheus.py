"""Recording and alert rules, evaluated by promtool on series made for them: each alert fires, and does not."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet_triton.serving import Server
from tests.docker.gateway import INFER, ROOT, infer_request
from tests.docker.test_shares import with_priority
from tests.serving.tiny import jpeg
from tests.tools import need

FOLDER = ROOT / "docker/prometheus"
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
WHO = 'instance="triton:8002", job="triton"'
FAILURES = "nv_inference_request_failure"
Series = dict[str, str]


def model(metric: str, labels: str = "", name: str = "alexnet") -> str:
    return f'{metric}{{{WHO}, model="{name}", version="1"{labels}}}'


def failing(reason: str, values: str, name: str = "alexnet") -> Series:
    """1,000 successes in each 15 s, and so many failures."""
    return {
        model("nv_inference_request_success", name=name): "0+1000x40",
        model("nv_inference_request_failure", f', reason="{reason}"', name): values,
    }


def waiting(total_us: str) -> Series:
    """100 requests in each 15 s, and what they waited in the queue together."""
    return {
        model("nv_inference_request_success"): "0+100x40",
        model("nv_inference_queue_duration_us"): total_us,
        # Many wait, on a machine that serves them in no time.
        model("nv_inference_pending_request_count"): "1000x40",
    }


def answering(within_objective: str) -> Series:
    """1,000 answers in each 15 s through two gateways, so many of them fast."""
    return {
        f'alexnet_gateway_seconds_{what}, instance="{instance}:9145", protocol="http"}}': values
        for instance in ("a", "b")
        for what, values in (('bucket{le="0.25"', within_objective), ('count{job="gateway"', "0+500x40"))
    }


def lasting(slow_us: str) -> Series:
    """Two Tritons, one with 100 requests of 0.1 s in each 15 s, the other with 20, and what they take together."""
    series = {}
    for instance, count, total_us in (("triton:8002", "0+20x40", slow_us), ("other:8002", "0+100x40", "0+10000000x40")):
        labels = f'{{instance="{instance}", job="triton", model="classify", version="1"}}'
        series[f"nv_inference_request_success{labels}"] = count
        series[f"nv_inference_request_duration_us{labels}"] = total_us
    return series


P99 = model("nv_inference_request_summary_us", ', quantile="0.99"', "classify")
GPU_USED, GPU_TOTAL = (f'nv_gpu_memory_{what}_bytes{{{WHO}, gpu_uuid="GPU-1"}}' for what in ("used", "total"))
UP = {f"up{{{WHO}}}": "1x40"}
# Four samples a minute, ten minutes. Series by alert: with which it fires at the end, and with which it does not.
CASES: dict[str, tuple[Series, Series]] = {
    "TritonNotAnswering": ({f"up{{{WHO}}}": "1x30 0x10"}, {f"up{{{WHO}}}": "1x39 0"}),
    "NoTriton": ({}, UP),
    "TritonUnhealthy": ({f"alexnet_healthy{{{WHO}}}": "1x30 0x10"}, {f"alexnet_healthy{{{WHO}}}": "0x30 1x10"}),
    "TritonHealed": ({f"alexnet_heals_total{{{WHO}}}": "0x30 1x10"}, {f"alexnet_heals_total{{{WHO}}}": "3x40"}),
    "TritonRestarted": (
        {f"alexnet_restarts_total{{{WHO}}}": "0x30 1x10"},
        {f"alexnet_restarts_total{{{WHO}}}": "3x40"},
    ),
    "LatencyOverObjective": ({P99: "260000x40"}, {P99: "240000x30" + 9 * " NaN"}),
    "StartsAborted": (
        {f"alexnet_aborted_starts_total{{{WHO}}}": "0x10 1x5 2x5 4x20"},
        {f"alexnet_aborted_starts_total{{{WHO}}}": "0x10 1x30"},
    ),
    "RequestsCut": (
        {f"alexnet_cut_drains_total{{{WHO}}}": "0x30 1x10"},
        {f"alexnet_cut_drains_total{{{WHO}}}": "2x40"},
    ),
    "QueueGrowing": (waiting("0+60000000x40"), waiting("0+40000000x40")),
    "AnswersOverObjective": (answering("0+490x40"), answering("0+497x40")),
    "TritonSlow": (lasting("0+10000000x40"), lasting("0+4000000x40")),
    "RequestsRefused": (failing("REJECTED", "0+20x40"), failing("REJECTED", "0+5x40")),
    "RequestsFailing": (failing("BACKEND", "0+20x40"), failing("BACKEND", "0+5x40")),
    "GpuMemoryNearlyFull": (
        {GPU_USED: "96e9x40", GPU_TOTAL: "100e9x40"},
        {GPU_USED: "94e9x40", GPU_TOTAL: "100e9x40"},
    ),
}


def test_every_alert_has_a_case() -> None:
    assert sorted(CASES) == sorted(ALERTS)


def rule_test(alert: str, series: Series, firing: int) -> dict[str, Any]:
    expression = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": firing}]}
        ],
    }


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("fires", [True, False])
def test_alert(alert: str, fires: bool, tmp_path: Path) -> None:
    assert_firing(alert, CASES[alert][0 if fires else 1], int(fires), tmp_path)


@pytest.mark.parametrize("name", ["classify", "alexnet"])
def test_what_callers_get_wrong_wakes_nobody(name: str, tmp_path: Path) -> None:
    """No alert at all fires."""
    test = rule_test("none", {**UP, **failing("OTHER", "0+500x40", name)}, 0)
    test["promql_expr_test"] = [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": "10m", "exp_samples": []}]
    promtool_test(test, tmp_path)


def assert_firing(alert: str, series: Series, firing: int, folder: Path) -> None:
    promtool_test(rule_test(alert, series, firing), folder)


def promtool_test(test: dict[str, Any], folder: Path) -> None:
    suite = {"rule_files": [str(FOLDER / "rules.yml")], "evaluation_interval": "15s", "tests": [test]}
    path = folder / "test.yml"
    path.write_text(json.dumps(suite))
    done = subprocess.run([need("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_quantile_is_of_all_tritons_together(tmp_path: Path) -> None:
    """One has 90 of 100 requests below 100 ms, the other all: of 200, the 99th percentile is at 0.8 of 100 to 500."""
    name = "nv_inference_first_response_histogram_ms_bucket"
    series = {
        f'{name}{{instance="{instance}", model="classify", le="{le}"}}': f"0+{count}x40"
        for instance, fast in (("a", 90), ("b", 100))
        for le, count in (("100", fast), ("500", 100), ("+Inf", 100))
    }
    record = "model:nv_inference_first_response_histogram_ms:p99"
    sample = {"labels": '{model="classify"}', "value": 420}
    test = rule_test("none", series, 0)
    test["promql_expr_test"] = [{"expr": f"round({record})", "eval_time": "10m", "exp_samples": [sample]}]
    promtool_test(test, tmp_path)


def metric(server: Server, name: str, model: str, reason: str) -> float:
    """A counter of failures in Triton's own metrics."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if {name, model, reason} <= set(re.findall(r"\w+", line)))


def test_triton_counts_refusals_as_the_rules_say(tritons: list[Server]) -> None:
    """And a damaged image as no failure of the models that do the work."""
    server = tritons[0]
    before = {reason: metric(server, FAILURES, "preprocess", reason) for reason in ("REJECTED", "BACKEND")}
    body, headers = with_priority(jpeg(1), '"timeout": 1000', images=16)
    with ThreadPoolExecutor(16) as callers:
        statuses = list(callers.map(lambda _: post(server, body, headers), range(64)))
    assert [post(server, *infer_request(b"no image")) for _ in range(5)] == 5 * [400]
    refused = metric(server, FAILURES, "preprocess", "REJECTED") - before["REJECTED"]
    assert refused + metric(server, FAILURES, "alexnet", "REJECTED") >= statuses.count(503) > 0
    assert metric(server, FAILURES, "preprocess", "BACKEND") == before["BACKEND"]


def post(server: Server, body: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"http://{server.http_address}{INFER}", body, headers)
    try:
        with urllib.request.urlopen(request) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("check", [("rules", "rules.yml"), ("config", "prometheus.yml")])
def test_promtool_accepts(check: tuple[str, str]) -> None:
    done = subprocess.run([need("promtool"), "check", check[0], FOLDER / check[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
