"""`make claims` at its smallest: pictures, lines and figures that belong together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.training.claims import activation, devices, variants
from alexnet_triton.training.claims import command as claims
from alexnet_triton.training.claims.common import SmallDataset
from alexnet_triton.training.data import ArraySplit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, of 20 images each to train on."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("noise")
    for split, count in (("train", 20), ("test", 5)):
        for name in ("dark", "bright"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 200 if name == "dark" else 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to nothing is trained: the figures mean nothing."""
    sizes = {activation: {"IMAGES": 512, "EPOCHS": 1, "SEEDS": 1, "CHOOSING_EPOCHS": 1}}
    sizes[devices] = {"IMAGES": 128, "EPOCHS": 2, "ROUNDS": 1, "BATCH": 32}
    for module, values in sizes.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(devices, "WIDTH", 0.05)
    for name in ("DROPOUT", "IDEAS"):
        config = replace(getattr(variants, name), images=48, epochs=1, seeds=1, width=0.05)
        monkeypatch.setattr(variants, name, config)


@pytest.mark.usefixtures("small")
def test_every_claim_has_a_picture_a_line_and_figures(folder: Path, tmp_path: Path) -> None:
    readme, target = tmp_path / "README.md", tmp_path / "claims"
    readme.write_text(f"before\n{claims.START}\nold\n{claims.END}\nafter\n")
    assert claims.main(["--data", str(folder), "--to", str(target), "--readme", str(readme)]) == 0
    report = json.loads((target / "claims.json").read_text())
    assert list(report) == list(claims.CLAIMS)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for one in report.values():
        assert one["line"] in text
        assert f"(claims/{one['picture']})" in text, "the link is relative to the file with the table"
        with Image.open(target / one["picture"]) as picture:
            assert picture.width > 500
    two = report["devices"]["values"]
    assert two["largest_difference"] < 1e-4
    assert all(rate > 0 for rates in two["images_per_second"].values() for rate in rates)


@pytest.mark.usefixtures("small")
def test_one_claim_again_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    earlier = {"ideas": {"claim": "Ideas", "line": "of an earlier run", "picture": "ideas.png"}}
    (tmp_path / "claims.json").write_text(json.dumps(earlier))
    assert claims.main(["--data", str(folder), "--to", str(tmp_path), "--only", "dropout"]) == 0
    report = json.loads((tmp_path / "claims.json").read_text())
    assert list(report) == ["dropout", "ideas"]
    assert report["ideas"] == earlier["ideas"]


def test_a_readme_without_marks_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(claims.TrainingError, match="put them where the table belongs"):
        claims.put_into(readme, "text")
    assert readme.read_text() == "no marks"


@pytest.mark.parametrize(("name", "target"), [("cifar10", 0.25), ("fashion-mnist", 0.15)])
def test_the_threshold_fits_the_data(name: str, target: float) -> None:
    none = ArraySplit(np.empty((0, 32, 32, 3), np.uint8), np.empty(0, np.int64))
    assert activation.threshold(SmallDataset(name, 10, none, none)) == target


def test_epochs_to_a_training_error() -> None:
    assert activation._epochs_to(0.25, [(0.2, 0.9), (0.4, 0.25), (0.6, 0.1)]) == 0.4
    assert activation._epochs_to(0.25, [(0.2, 0.9)]) is None
