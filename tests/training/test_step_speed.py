"""The comparison of training steps: the same network, computed in different ways, and ratios of their rates."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from alexnet_triton.training.model import NetworkConfig
from docs import step_speed


def test_every_variant_is_measured_in_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bench.json"
    smallest = ["--batch", "2", "--rounds", "2", "--repeats", "1", "--width", "0.05"]
    assert step_speed.main([*smallest, "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    names = [variant.name for variant in step_speed.VARIANTS]
    assert [row["variant"] for row in figures["variants"]] == list(figures["rounds"]) == names
    printed = capsys.readouterr().out
    for row, rates in zip(figures["variants"], figures["rounds"].values(), strict=True):
        assert len(rates) == 2
        assert row["images_per_second"] == {"median": statistics.mean(rates), "least": min(rates), "most": max(rates)}
        assert f"{row[step_speed.RATIO]['median']:.2f} (" in printed


def test_every_variant_computes_the_same_step() -> None:
    """In float32, the first two losses agree: before and after an update of the weights."""
    network = NetworkConfig("alexnet", classes=10, width=0.05, dropout=0.0)
    losses = []
    for variant in step_speed.VARIANTS:
        step = step_speed.make_step(replace(variant, precision="fp32"), network, batch=2)
        losses.append([step(), step()])
    assert losses[0][0] != losses[0][1]
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=1e-5)


def test_ratios_are_taken_within_a_round() -> None:
    ours, other = step_speed.OURS.name, "other"
    rows = step_speed.summarize({ours: [100.0, 10.0, 50.0], other: [50.0, 4.0, 50.0]})
    assert rows[1][step_speed.RATIO] == {"median": 2.0, "least": 1.0, "most": 2.5}
