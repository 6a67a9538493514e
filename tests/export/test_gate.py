"""A precision that fails is left out, unless it is forced, and then that is said; a few images decide nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from alexnet_triton.common.files import sha256
from alexnet_triton.export import prepare, publish
from alexnet_triton.export.errors import AccuracyError, NotDecidedError, PublishError
from alexnet_triton.export.prepare import find_plan
from tests.export.test_publishers import write_model


def report(images: int = 10_000, test_set: int = 10_000, **rows: tuple[float, float]) -> dict[str, Any]:
    """Precision -> top-1 and agreement; FP32 has 0.9."""
    given = {"fp32": (0.9, 1.0), **rows}
    made = [
        {"precision": name, "images": images, "top1": top1, "top5": 1.0, "agreement": agreement, "distance": 0.0}
        for name, (top1, agreement) in given.items()
    ]
    return {"rows": made, "test_set": test_set}


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.2), ("bf16", 0.2), ("int8", 0.5)])
def test_the_bound_is_in_points_of_top1(precision: str, allowed: float) -> None:
    just, too_much = 0.9 - allowed / 100, 0.9 - (allowed + 0.01) / 100
    assert prepare.find_failing(report(**{precision: (just, 1.0)})) == {}
    failing = prepare.find_failing(report(**{precision: (too_much, 1.0)}, **OTHER[precision]))
    assert failing == {precision: f"loses {allowed + 0.01:.2f} points of top-1, more than the {allowed} allowed"}


REPORTED = {"sha256": {"model.fp16.onnx": "a model's"}}
OTHER = {"fp16": {"int8": (0.9, 0.99)}, "bf16": {"int8": (0.9, 0.99)}, "int8": {"fp16": (0.9, 0.999)}}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_right_as_often_with_other_answers_is_no_proof(precision: str) -> None:
    (reason,) = prepare.find_failing(report(**{precision: (0.9, 0.1)})).values()
    assert "gives the answer of fp32 for 0.100 of the images" in reason


def test_fp32_that_differs_is_not_published() -> None:
    other = report()
    other["rows"].append({**other["rows"][0], "agreement": 0.9})
    with pytest.raises(AccuracyError, match="fp32 in another runtime gives the answer of fp32 for"):
        prepare.find_failing(other)


@pytest.mark.parametrize(("images", "test_set", "decided"), [(32, 10_000, False), (1000, 10_000, True), (36, 36, True)])
def test_a_few_of_the_test_images_decide_nothing(images: int, test_set: int, decided: bool) -> None:
    given = report(images, test_set, int8=(0.9, 1.0))
    if decided:
        assert prepare.find_failing(given) == {}
    else:
        with pytest.raises(NotDecidedError, match="32 test images are too few") as refusal:
            prepare.find_failing(given)
        assert refusal.value.exit_code == 4
    assert bool(prepare.find_failing(given, force=True)) is not decided


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder as an export leaves it, of the small network, whose INT8 fails."""
    folder = write_model(tmp_path).parent
    for name in ("model.fp16.onnx", "model.int8.onnx"):
        (folder / name).write_bytes((folder / "model.onnx").read_bytes())
    given = report(fp16=(0.9, 1.0), bf16=(0.9, 1.0), int8=(0.9, 0.1))
    given["sha256"] = {path.name: sha256(path) for path in folder.glob("*.onnx")}
    (folder / prepare.REPORT).write_text(json.dumps(given))
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_one_precision_that_fails_is_left_out_and_named(
    exported: Path, force: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = exported / "built"
    words = [str(exported / "model.onnx"), "--repository", str(repository), *(["--force"] if force else [])]
    assert publish.main(words) == 0
    said = capsys.readouterr()
    assert said.out == f"version 1 in {repository}\n"
    how = "published because of --force" if force else "left out"
    assert said.err.startswith(f"alexnet-triton publish: {how}: int8, which gives the answer of fp32 for 0.100")
    manifest = json.loads((repository / "alexnet/1/manifest.json").read_text())
    assert ("int8" in manifest["precisions"]) == force == (repository / "alexnet/1/model.int8.onnx").exists()
    assert manifest["forced"] == (["int8"] if force else [])
    assert {"fp32", "fp16", "bf16"} <= set(manifest["precisions"])


def test_a_model_that_the_report_beside_it_is_not_about(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = exported / "other.onnx"
    other.write_bytes((exported / "model.onnx").read_bytes())
    assert publish.main([str(other), "--repository", str(exported / "built")]) == 1
    assert "report.json is not about it; verify again" in capsys.readouterr().err


def test_a_report_on_other_files_is_refused(exported: Path) -> None:
    model = exported / "model.onnx"
    assert prepare.read_report(model) is not None
    model.write_bytes(b"other weights")
    with pytest.raises(PublishError, match="not the file that"):
        prepare.read_report(model)
    for damage in ("{", "[]", '{"sha256": {}, "rows": [{}]}'):
        (exported / prepare.REPORT).write_text(damage)
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
        find_plan(plan.with_name("model.onnx"), REPORTED, {"a model's"}, 32)


def test_a_plan_for_triton_is_published(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    onnx = {"file": "model.fp16.onnx", "sha256": "a model's"}
    profile = {"max": [32, 227, 227, 3]}
    sidecar = {"purpose": "for Triton", "plan": {"sha256": sha256(plan)}, "onnx": onnx, "profile": profile}
    (tmp_path / "model.plan.json").write_text(json.dumps(sidecar))
    assert find_plan(tmp_path / "model.onnx", REPORTED, {"a model's"}, 32) == {"model.plan": plan}
    assert find_plan(tmp_path / "elsewhere" / "model.onnx", None, set(), 32) == {}
    with pytest.raises(PublishError, match=r"built from another model\.fp16\.onnx than the one that is published"):
        find_plan(tmp_path / "model.onnx", {"sha256": {}}, {"another's"}, 32)
    with pytest.raises(PublishError, match=r"built from model\.fp16\.onnx, which fails"):
        find_plan(tmp_path / "model.onnx", REPORTED, {"another's"}, 32)
    with pytest.raises(PublishError, match=r"no report\.json says what its precision loses"):
        find_plan(tmp_path / "model.onnx", None, {"a model's"}, 32)
    with pytest.raises(
        PublishError, match=r"takes batches of 32 images, and Triton forms .* 64; build it with --max 64"
    ):
        find_plan(tmp_path / "model.onnx", REPORTED, {"a model's"}, 64)
