"""What the autoscaler is told: the recorded rule and KEDA's query, evaluated by promtool on series made for them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.chart import FOLDER, NAMESPACE, find, rendered
from tests.tools import need

SERVICE = "alexnet-triton"
RECORD = "alexnet_triton_work"
MINUTES = 5


def group() -> dict[str, Any]:
    """The rules of the autoscaler, as the chart hands them to Prometheus."""
    found: dict[str, Any] = find(rendered("gpu prometheus-adapter"), "PrometheusRule")["spec"]["groups"][0]
    return found


def keda_query() -> str:
    return find(rendered("gpu keda"), "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]


def adapter_query() -> str:
    """What prometheus-adapter asks for the metric of the HorizontalPodAutoscaler."""
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["external"]
    metric = find(rendered("gpu prometheus-adapter"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["external"][
        "metric"
    ]
    labels = {"namespace": NAMESPACE, **metric["selector"]["matchLabels"]}
    matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
    query = rule["metricsQuery"].replace("<<.Series>>", metric["name"]).replace("<<.LabelMatchers>>", matchers)
    assert "<<" not in query
    return query


def pod(name: str, model: str, pending: float = 0, busy: float = 0, namespace: str = NAMESPACE) -> dict[str, str]:
    """A pod's series of a model: requests that wait, and seconds computed in each second, half of them copies."""
    labels = f'{{namespace="{namespace}", service="{SERVICE}", pod="{name}", model="{model}", version="1"}}'
    steps = {"input": busy / 4, "infer": busy / 2, "output": busy / 4}
    computed = {
        f"nv_inference_compute_{step}_duration_us{labels}": f"0+{share * 15e6:.0f}x{4 * MINUTES}"
        for step, share in steps.items()
    }
    return {f"nv_inference_pending_request_count{labels}": f"{pending}x{4 * MINUTES}", **computed}


def evaluate(series: dict[str, str], expression: str, expected: "float | None", folder: Path) -> None:
    """Have promtool compare an expression's one value after some minutes; None: it has none."""
    rules, suite = folder / "rules.yml", folder / "test.yml"
    rules.write_text(json.dumps({"groups": [group()]}))
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{MINUTES}m", "exp_samples": samples}],
    }
    suite.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run([need("promtool"), "test", "rules", suite], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


QUERIES = {"recorded": lambda: f"sum({RECORD})", "keda": keda_query, "adapter": adapter_query}
# Series, and the work that they tell of.
CASES: dict[str, tuple[dict[str, str], float | None]] = {
    "waiting and computed, of every step and pod": (
        {**pod("a", "preprocess", 10, 2), **pod("a", "alexnet", 30, 4), **pod("b", "alexnet", 50, 8)},
        104,
    ),
    # The average of ratios would be far from it: one pod is idle.
    "an idle pod adds nothing": ({**pod("a", "alexnet", 40, 8), **pod("b", "alexnet")}, 48),
    "classify counts what its steps count": ({**pod("a", "alexnet", 20, 4), **pod("a", "classify", 24, 4)}, 24),
    "other namespaces are others'": ({**pod("a", "alexnet", 20, 4), **pod("b", "alexnet", 90, 4, "staging")}, 24),
    # Nothing known is not no work: the autoscaler leaves the pods as they are.
    "no Triton is known": ({}, None),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("case", CASES)
def test_the_work_of_all_pods(query: str, case: str, tmp_path: Path) -> None:
    series, expected = CASES[case]
    evaluate(series, QUERIES[query](), expected, tmp_path)


def test_the_recorded_series_is_found_by_its_labels(tmp_path: Path) -> None:
    """prometheus-adapter looks for it by namespace and service."""
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["external"]
    found = f"count({rule['seriesQuery']})"
    evaluate(pod("a", "alexnet", 1), found, 1, tmp_path)
    assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}}


def test_the_autoscaler_divides_the_sum_by_the_pods() -> None:
    hpa = find(rendered("gpu prometheus-adapter"), "HorizontalPodAutoscaler")["spec"]
    (metric,) = hpa["metrics"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "64"}
    scaled = find(rendered("gpu keda"), "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "64")
    assert hpa["scaleTargetRef"]["name"] == scaled["scaleTargetRef"]["name"] == f"{SERVICE}"
    assert find(rendered("gpu keda"), "Deployment", "triton")["metadata"]["name"] == SERVICE


def test_both_ask_the_same() -> None:
    assert re.sub(r"\s+", " ", group()["rules"][0]["expr"]) == re.sub(r"\s+", " ", keda_query())


def test_prometheus_takes_all_rules(tmp_path: Path) -> None:
    groups = find(rendered("gpu prometheus-adapter"), "PrometheusRule")["spec"]["groups"]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": groups}))
    done = subprocess.run([need("promtool"), "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
