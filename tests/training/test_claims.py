"""`make claims` at its smallest: pictures, lines and figures that belong together."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.training.claims import activation, verdict
from alexnet_triton.training.claims import command as claims
from alexnet_triton.training.claims.activation import ActivationOutcome
from main_job import ROOT


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


SMALL_VARIANT = {"images": 48, "epochs": 1, "seeds": 1, "width": 0.05}
SMALL = {
    "data": {"training_images": 40, "test_images": 10},
    "activation": {
        **{"images": 40, "batch": 8, "epochs": 1, "seeds": 1, "choosing_epochs": 1, "extensions": 1},
        "learning_rates": {"as in 2012": [0.01, 0.02], "pixels scaled and weights fitted": [0.01, 0.03]},
    },
    "dropout": SMALL_VARIANT,
    "dropout-augmented": SMALL_VARIANT,
    "ideas": SMALL_VARIANT,
    "devices": {"images": 40, "batch": 8, "epochs": 2, "rounds": 1, "width": 0.05},
}


@pytest.fixture
def conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Next to nothing is trained: the figures mean nothing."""
    fixed = json.loads(claims.CONDITIONS.read_text())
    small = {name: {**values, **SMALL[name]} for name, values in fixed.items()}
    monkeypatch.setattr(claims, "CONDITIONS", tmp_path / "conditions.json")
    claims.CONDITIONS.write_text(json.dumps(small))
    return small


def test_every_claim_has_a_picture_a_verdict_a_line_and_figures(
    folder: Path, tmp_path: Path, conditions: dict[str, dict[str, Any]]
) -> None:
    readme, target = tmp_path / "README.md", tmp_path / "claims"
    readme.write_text(f"before\n{claims.START}\nold\n{claims.END}\nafter\n")
    assert claims.main(["--data", str(folder), "--to", str(target), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for name in claims.CLAIMS:
        result = json.loads((target / f"{name}.json").read_text())
        assert result["conditions"] == {"data": conditions["data"], **conditions[name]}
        verdicts = claims.verdicts_line(result["verdicts"])
        assert f"(claims/{name}.png), [figures](claims/{name}.json) | {verdicts} | {result['line']} |" in text
        with Image.open(target / f"{name}.png") as picture:
            assert picture.width > 500
    two = result["values"]
    assert two["largest_difference"] < 1e-4
    assert all(rate > 0 for rates in two["images_per_second"].values() for rate in rates)


def test_one_claim_again_leaves_the_others_and_what_was_found_before(
    folder: Path, tmp_path: Path, conditions: dict[str, dict[str, Any]]
) -> None:
    earlier = {"claim": "Ideas", "verdicts": {"idea": "shown"}, "line": "of an earlier run"}
    earlier["conditions"] = claims.conditions_of("ideas", conditions)
    old = {"claim": "Dropout", "line": "under conditions of no file", "picture": "dropout.png"}
    (tmp_path / "before").mkdir()
    for name, result in (("ideas", earlier), ("before/dropout", old)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    readme = tmp_path / "README.md"
    readme.write_text(f"{claims.START}{claims.END}")
    command = ["--data", str(folder), "--to", str(tmp_path), "--only", "dropout", "--readme", str(readme)]
    assert claims.main(command) == 0
    assert json.loads((tmp_path / "ideas.json").read_text()) == earlier
    rows = readme.read_text().splitlines()[3:-1]
    assert rows[0].startswith("| [Dropout against none](dropout.png), [figures](dropout.json) | dropout: ")
    assert rows[1] == "| [Ideas](ideas.png), [figures](ideas.json) | idea: shown | of an earlier run |"
    links = "[Dropout](before/dropout.png), [figures](before/dropout.json)"
    assert rows[2:] == [f"| {links} | found before the conditions were fixed | under conditions of no file |"]


@pytest.mark.parametrize("difference", ["epochs", "seeds", "data"])
def test_a_result_made_under_other_conditions_is_refused(
    folder: Path,
    tmp_path: Path,
    conditions: dict[str, dict[str, Any]],
    difference: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = {**claims.conditions_of("ideas", conditions), difference: 7}
    (tmp_path / "ideas.json").write_text(json.dumps({"claim": "Ideas", "line": "", "conditions": theirs}))
    assert claims.main(["--data", str(folder), "--to", str(tmp_path), "--only", "dropout"]) == 1
    error = capsys.readouterr().err
    assert f"ideas.json: made under other conditions ({difference}: 7, not" in error
    assert "--only ideas" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "dropout.json").exists(), "nothing was trained before"


def test_the_results_in_docs_are_of_the_conditions_in_the_file() -> None:
    fixed = json.loads(claims.CONDITIONS.read_text())
    assert fixed.keys() == {"data", *claims.CLAIMS}
    for name, claim in claims.CLAIMS.items():
        claim.conditions(**fixed[name])
    claims.read_results(ROOT / "docs/claims", list(claims.CLAIMS), fixed)


def test_the_table_in_docs_is_made_of_the_files() -> None:
    folder = ROOT / "docs/claims"
    results = claims.read_results(folder, list(claims.CLAIMS), json.loads(claims.CONDITIONS.read_text()))
    text = (folder / "README.md").read_text().partition(claims.START)[2].partition(claims.END)[0]
    assert text.strip() == claims.table(results, folder, folder)


def test_a_readme_without_marks_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(claims.TrainingError, match="put them where the table belongs"):
        claims.put_into(readme, "text")
    assert readme.read_text() == "no marks"


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.1, 2.0, 3.0], "shown"),
        ([-0.1, 0.0, -2.0], "not shown"),
        ([-0.1, 2.0, 3.0], "not decided: the seeds disagree"),
    ],
)
def test_shown_is_what_every_seed_shows(gains: list[float], said: str) -> None:
    assert verdict(gains, 0.0) == said


def outcome(rates: list[float], best: float, epochs: list[float | None]) -> ActivationOutcome:
    return ActivationOutcome({rate: abs(rate - best) for rate in rates}, [], epochs)


@pytest.mark.parametrize(
    ("best_of_tanh", "epochs_of_tanh", "said"),
    [
        (0.02, [9.0, 8.5], "shown"),
        (0.02, [9.0, None], "shown"),
        (0.02, [7.0, 6.0], "not shown"),
        (0.02, [9.0, 6.0], "not decided: the seeds disagree"),
        (0.04, [9.0, 8.5], "not decided: the best rate of tanh, 0.04, is at the edge of its grid"),
        (0.01, [9.0, 8.5], "not decided: the best rate of tanh, 0.01, is at the edge of its grid"),
    ],
)
def test_a_best_rate_at_the_edge_decides_nothing(
    best_of_tanh: float, epochs_of_tanh: list[float | None], said: str
) -> None:
    rates = [0.01, 0.02, 0.04]
    outcomes = {"relu": outcome(rates, 0.02, [8.0, 8.0]), "tanh": outcome(rates, best_of_tanh, epochs_of_tanh)}
    assert activation.decide(outcomes, 1.0) == said


def test_the_grid_grows_until_the_best_rate_lies_within_it() -> None:
    def error_at(rate: float) -> float:
        return abs(math.log(rate / 0.08))

    assert list(activation.try_rates([0.01, 0.02], 4, error_at)) == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert list(activation.try_rates([0.32, 0.64], 4, error_at)) == [0.32, 0.64, 0.16, 0.08, 0.04]
    assert list(activation.try_rates([0.01, 0.02], 1, error_at)) == [0.01, 0.02, 0.04], "still at the edge"
    assert list(activation.try_rates([0.04, 0.08, 0.16], 4, error_at)) == [0.04, 0.08, 0.16]


def test_epochs_to_a_training_error() -> None:
    assert activation._epochs_to(0.25, [(0.2, 0.9), (0.4, 0.25), (0.6, 0.1)]) == 0.4
    assert activation._epochs_to(0.25, [(0.2, 0.9)]) is None
