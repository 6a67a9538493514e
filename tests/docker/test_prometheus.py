"""Recording and alert rules, evaluated by promtool on series made for them: each alert fires, and does not."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.gateway import ROOT
from tests.tools import need

FOLDER = ROOT / "docker/prometheus"
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
WHO = 'instance="triton:8002", job="triton"'
Series = dict[str, str]


def model(metric: str, labels: str = "") -> str:
    return f'{metric}{{{WHO}, model="classify", version="1"{labels}}}'


def failing(reason: str, values: str, waiting: str = "0x40") -> Series:
    return {
        model("nv_inference_pending_request_count"): waiting,
        model("nv_inference_request_success"): "0+1000x40",
        model("nv_inference_request_failure", f', reason="{reason}"'): values,
    }


P99 = model("nv_inference_request_summary_us", ', quantile="0.99"')
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
    "QueueGrowing": (
        {model("nv_inference_pending_request_count"): "0+3x40"},
        {model("nv_inference_pending_request_count"): "0x38 128x2"},
    ),
    "RequestsRefused": (failing("OTHER", "0+20x40", "128x40"), failing("OTHER", "0+20x40")),
    "RequestsFailing": (failing("OTHER", "0+20x40"), failing("OTHER", "0+5x40")),
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
    series = CASES[alert][0 if fires else 1]
    suite = {
        "rule_files": [str(FOLDER / "rules.yml")],
        "evaluation_interval": "15s",
        "tests": [rule_test(alert, series, int(fires))],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(suite))
    done = subprocess.run([need("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("check", [("rules", "rules.yml"), ("config", "prometheus.yml")])
def test_promtool_accepts(check: tuple[str, str]) -> None:
    done = subprocess.run([need("promtool"), "check", check[0], FOLDER / check[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
