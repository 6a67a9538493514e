"""What people see on a terminal, and what programs get instead."""

import re
from pathlib import Path

import pytest

from answers import by_torch
from commands import command, lines
from embedded_triton import Triton
from terminals import on_terminal

LABELS = (Path(__file__).parent / "repository/classify/labels.txt").read_text().splitlines()
EIGHTHS = "▏▎▍▌▋▊▉"
COUNT = re.compile(r"(\d+)/(\d+) +([\d,]+) images/s +(\d+) errors")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_bar_for_every_probability(triton: Triton, pictures: list[Path]) -> None:
    shown = on_terminal(command(pictures[0], "--url", triton.urls["grpc"], "--top", 4), "stdout")
    assert (shown.code, shown.other) == (0, "")
    assert "\x1b[36m" in shown.terminal
    name, *rows = plain(shown.terminal).splitlines()
    assert name == str(pictures[0])
    probabilities = by_torch(pictures[0].read_bytes())
    assert len(rows) == 4
    for row, index in zip(rows, (-probabilities).argsort(), strict=False):
        percent, bar, label = re.fullmatch(rf" +([\d.]+)% ([█{EIGHTHS} ]{{24}}) (.+)", row).groups()  # type: ignore[union-attr]
        assert label == LABELS[index]
        assert float(percent) == pytest.approx(100 * probabilities[index], abs=0.006)
        eighths = 8 * bar.count("█") + max((EIGHTHS.index(each) + 1 for each in bar if each in EIGHTHS), default=0)
        assert eighths == pytest.approx(probabilities[index] * 24 * 8, abs=0.6)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}], ids=["no colour is wanted", "no terminal"])
def test_plain_text_elsewhere(triton: Triton, pictures: list[Path], environment: dict[str, str]) -> None:
    words = command(pictures[0], "--url", triton.urls["grpc"])
    shown = on_terminal(words, "stdout" if environment else "stderr", environment)
    text = shown.terminal if environment else shown.other
    assert shown.code == 0
    assert "\x1b" not in text
    assert "█" not in text
    assert len(text.splitlines()) == 6


def test_progress_with_rate_and_errors(triton: Triton, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    file = tmp_path / "results.jsonl"
    words = command(*pictures, tmp_path / "bad.jpg", "--url", triton.urls["http"], "--output", file)
    shown = on_terminal(words, "both")
    assert shown.code == 1
    text = plain(shown.terminal)
    assert f"alexnet-classify: {tmp_path}/bad.jpg: " in text
    done, total, rate, errors = COUNT.findall(text)[-1]
    assert (done, total, errors) == ("71", "71", "1")
    assert int(rate.replace(",", "")) > 0
    assert len(lines(file.read_bytes())) == 71


def test_progress_of_a_run_that_goes_on_counts_what_is_left(
    triton: Triton, pictures: list[Path], tmp_path: Path
) -> None:
    words = ["--url", triton.urls["grpc"], "--output", tmp_path / "results.jsonl", "--resume"]
    assert on_terminal(command(*pictures[:20], *words), "both").code == 0
    shown = on_terminal(command(*pictures[:50], *words), "both")
    assert COUNT.findall(plain(shown.terminal))[-1][:2] == ("30", "30")


@pytest.mark.parametrize(
    ("stream", "flags"), [("both", ["--no-progress", "-o", "f.csv"]), ("stdout", ["-o", "f.csv"]), ("both", [])]
)
def test_no_progress_where_none_is_wanted(
    triton: Triton, pictures: list[Path], tmp_path: Path, stream: str, flags: list[str]
) -> None:
    """Not wanted, not a terminal, and not between results on the same one."""
    flags = [flag.replace("f.csv", str(tmp_path / "f.csv")) for flag in flags]
    shown = on_terminal(command(*pictures[:3], "--url", triton.urls["grpc"], *flags), stream)
    assert shown.code == 0
    assert "images/s" not in shown.terminal + shown.other
