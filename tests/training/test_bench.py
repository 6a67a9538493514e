"""The benchmark compares what it says: the same network, computed in different ways."""

import json
from pathlib import Path

import pytest

from alexnet_triton.training import step_speed


def test_every_way_is_measured_in_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bench.json"
    smallest = ["--batch", "2", "--rounds", "2", "--repeats", "1", "--width", "0.05"]
    assert step_speed.main([*smallest, "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert [row["way"] for row in figures["ways"]] == [way.name for way in step_speed.VARIANTS]
    assert all(len(rates) == 2 for rates in figures["rounds"].values())
    assert figures["ways"][0]["bf16_channels_last_is_times"]["median"] == 1.0
    printed = capsys.readouterr().out
    assert f"{figures['ways'][1]['bf16_channels_last_is_times']['median']:.2f}" in printed


def test_ratios_are_taken_within_a_round() -> None:
    ours, other = step_speed.OURS.name, "other"
    rows = step_speed.summarize({ours: [100.0, 10.0, 50.0], other: [50.0, 4.0, 50.0]})
    assert rows[1]["bf16_channels_last_is_times"] == {"median": 2.0, "least": 1.0, "most": 2.5}
