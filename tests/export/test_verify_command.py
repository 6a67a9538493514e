"""`alexnet-triton verify`: files of every kind against one another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.export import onnx_file, to_onnx, verify
from alexnet_triton.export.errors import AccuracyError
from alexnet_triton.export.numerics import Comparison, half_precision_tolerance
from alexnet_triton.export.quantize import to_half
from alexnet_triton.export.verify import plan_report
from tests.export.small_checkpoint import write_checkpoint, write_pictures

NO_GPU = "not run: no GPU"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, what was exported of it, pictures, and a plan's sidecar as a machine with a GPU writes it."""
    folder = tmp_path_factory.mktemp("verify")
    source, digest = to_onnx.open_checkpoint(write_checkpoint(folder / "checkpoint.pt"))
    model = to_onnx.export(source, digest)
    onnx_file.write(model, folder / "model.onnx")
    onnx_file.write(to_half(model), folder / "model.fp16.onnx")
    write_pictures(folder / "images", 40)
    (folder / "model.plan").write_bytes(b"plan")
    (folder / "model.plan.json").write_text(json.dumps(SIDECAR))
    return folder


SIDECAR = {
    "purpose": "for Triton",
    "builder": {"name": "TensorRT", "version": "10.12"},
    "gpu": {"name": "H100"},
    "verified": {"reference": "ONNX Runtime", "images": 256, "largest_difference": {"1": 1e-4, "32": 2e-4}},
    "config": {"version_compatible": False},
}


def run(folder: Path, *words: str, against: str = "checkpoint.pt") -> int:
    candidates = [str(folder / word) if "." in word and not word[0].isdigit() else word for word in words]
    return verify.main([*candidates, "--against", str(folder / against), "--images", str(folder / "images")])


def test_every_runtime_has_a_row(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert run(folder, "model.onnx", "model.fp16.onnx", "model.plan", "--bf16", "--json", str(file)) == 0
    found = json.loads(file.read_text())
    rows = {(row["precision"], row["runtime"]): row for row in found["rows"]}
    assert set(rows) == {
        *(("fp32", "PyTorch"), ("fp32", "ONNX Runtime"), ("fp32", "OpenVINO")),
        *(("bf16", "OpenVINO"), ("fp16", "ONNX Runtime")),
    }
    assert rows["fp32", "ONNX Runtime"]["largest_difference"] <= 1e-5
    assert all(row["images"] == 40 for row in rows.values())
    assert found["command"].startswith("alexnet-triton verify ")
    assert found["not_run"] == {"model.plan": NO_GPU}
    printed = capsys.readouterr().out
    assert NO_GPU in printed
    assert all(runtime in printed for _, runtime in rows)


def test_a_difference_above_the_tolerance_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "model.onnx", "--tolerance", "1e-4") == 0
    capsys.readouterr()
    assert run(folder, "model.fp16.onnx", "--tolerance", "1e-9") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("alexnet-triton verify: model.fp16.onnx in ONNX Runtime: probabilities differ by ")


@pytest.mark.parametrize(
    ("top1", "agreement", "said"),
    [(0.8985, 1.0, ""), (0.89, 1.0, "loses 1.00 points"), (None, 0.999, ""), (None, 0.99, "loses 1.00 points")],
)
def test_a_loss_of_top1_above_the_allowed_is_refused(top1: float | None, agreement: float, said: str) -> None:
    """Of images without labels, a different answer counts as a wrong one."""
    reference = Comparison("fp32", "ONNX Runtime", "model.onnx", 1.0, 1000, top1 and 0.9, None, 1.0, 0.0, 0.0)
    plan = replace(reference, file="model.plan", runtime="TensorRT", top1=top1, agreement=agreement)
    if said:
        with pytest.raises(AccuracyError, match=rf"model\.plan in TensorRT: {said} of top-1, more than 0\.2"):
            verify._check_top1([reference, plan], 0.2)
    else:
        verify._check_top1([reference, plan], 0.2)


def test_the_allowed_loss_is_an_option(folder: Path) -> None:
    assert run(folder, "model.onnx", "--top1-loss", "0.2") == 0


def test_nothing_compared_is_not_decided(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--tolerance", "1e-9"]):
        assert run(folder, "model.plan", *words) == 4
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"alexnet-triton verify: not decided: model.plan {NO_GPU}"


@pytest.mark.parametrize(
    ("candidate", "against", "said"),
    [
        ("model.onnx", "model.plan", f"{NO_GPU}; compare with a checkpoint or an ONNX model"),
        ("model.onnx", "images", "give a checkpoint (.pt), an ONNX model (.onnx) or a TensorRT plan (.plan)"),
        ("absent.onnx", "checkpoint.pt", "no such model"),
        ("absent.plan", "checkpoint.pt", "without its absent.plan.json; build it"),
        ("nameless.onnx", "nameless.onnx", "do not name their classes"),
        ("other.onnx", "checkpoint.pt", "have different classes"),
    ],
)
def test_files_that_cannot_be_compared(
    folder: Path, candidate: str, against: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, classes in (("nameless.onnx", "[]"), ("other.onnx", '["a", "b", "c", "d", "e", "f"]')):
        model = onnx_file.read(folder / "model.onnx")
        next(entry for entry in model.metadata_props if entry.key == "classes").value = classes
        (folder / name).write_bytes(model.SerializeToString())
    assert run(folder, candidate, against=against) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_plan_is_reported_from_its_sidecar(folder: Path, tmp_path: Path) -> None:
    found = plan_report(folder / "model.plan")
    assert isinstance(found, dict)
    assert found["verified"] == SIDECAR["verified"]
    row = {
        "precision": "fp32",
        "runtime": "PyTorch",
        "top1": 1.0,
        "top5": 1.0,
        "agreement": 1.0,
        "distance": 0.0,
        "images": 1,
    }
    row |= {"largest_difference": 0.0, "megabytes": 1.0, "images_per_second": {}}
    with (tmp_path / "table.txt").open("w") as file:
        verify.show_report({"rows": [row], "hardware": "a processor", "tensorrt": found}, file)
    assert "within 2.0e-04 of ONNX Runtime on 256 images" in (tmp_path / "table.txt").read_text()
    assert plan_report(tmp_path / "model.plan") == NO_GPU


def test_rounding_to_half_precision_has_a_bound() -> None:
    """Logits rounded at eight places stay within it, and an error ten times as large does not."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 4, (500, 10))

    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    exact = softmax(logits)
    allowed = half_precision_tolerance(exact, layers=8)
    rounded = softmax(logits.astype(np.float16).astype(np.float64))
    assert np.abs(rounded - exact).max() <= allowed
    assert np.abs(softmax(logits + random.normal(0, 0.1, logits.shape)) - exact).max() > allowed
