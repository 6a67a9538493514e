"""A precision that loses too much is not published, unless that is forced, and then it is on record."""

import json
from pathlib import Path
from typing import Any

import pytest

from alexnet_triton.common.files import sha256
from alexnet_triton.export import prepare
from alexnet_triton.export.errors import AccuracyError, PublishError
from alexnet_triton.export.prepare import find_plan


def report(**top1: float) -> dict[str, Any]:
    return {"rows": [{"precision": precision, "top1": value} for precision, value in top1.items()]}


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.2), ("bf16", 0.2), ("int8", 0.5)])
def test_the_bound_is_in_points_of_top1(precision: str, allowed: float) -> None:
    just, too_much = 0.9 - allowed / 100, 0.9 - (allowed + 0.01) / 100
    assert prepare.check_losses(report(fp32=0.9, **{precision: just}), force=False) == []
    with pytest.raises(AccuracyError, match=f"{precision} loses {allowed + 0.01:.2f} points of top-1, more than"):
        prepare.check_losses(report(fp32=0.9, **{precision: too_much}), force=False)
    assert prepare.check_losses(report(fp32=0.9, **{precision: too_much}), force=True) == [precision]


def test_a_report_on_other_files_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    (tmp_path / prepare.REPORT).write_text(json.dumps({"rows": [], "sha256": {"model.onnx": sha256(model)}}))
    assert prepare.read_report(model) is not None
    model.write_bytes(b"other weights")
    with pytest.raises(PublishError, match="not the file that"):
        prepare.read_report(model)
    (tmp_path / prepare.REPORT).write_text("{")
    with pytest.raises(PublishError, match="damaged"):
        prepare.read_report(model)


def test_no_report_no_verified_precision(tmp_path: Path) -> None:
    assert prepare.read_report(tmp_path / "model.onnx") is None


@pytest.mark.parametrize("sidecar", [None, {"purpose": "a check, not for Triton"}, {"purpose": "for Triton"}])
def test_a_plan_that_is_not_for_triton_is_refused(sidecar: dict[str, Any] | None, tmp_path: Path) -> None:
    """A check's plan, one of another build, or one that nothing vouches for."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    if sidecar is not None:
        (tmp_path / "model.plan.json").write_text(json.dumps({**sidecar, "plan": {"sha256": "another"}}))
    with pytest.raises(PublishError, match="not a plan that was built for Triton"):
        find_plan(plan.with_name("model.onnx"), {"a model's"})


def test_a_plan_for_triton_is_published(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    onnx = {"file": "model.fp16.onnx", "sha256": "a model's"}
    sidecar = {"purpose": "for Triton", "plan": {"sha256": sha256(plan)}, "onnx": onnx}
    (tmp_path / "model.plan.json").write_text(json.dumps(sidecar))
    assert find_plan(tmp_path / "model.onnx", {"a model's"}) == {"model.plan": plan}
    assert find_plan(tmp_path / "elsewhere" / "model.onnx", {"a model's"}) == {}
    with pytest.raises(PublishError, match=r"built from another model\.fp16\.onnx than the one that is published"):
        find_plan(tmp_path / "model.onnx", {"another's"})
