"""The command `alexnet-triton loadtest compare`."""

from pathlib import Path

import pytest

from alexnet_triton.loadtest import main
from tests.loadtest.stubs import Running, loadtest, stub

SHORT = (
    "--users",
    4,
    "--duration",
    "300ms",
    "--warmup",
    "0s",
    "--pairs",
    5,
    "--confidence",
    0.9,
    "--no-report",
    "--limit",
    5,
)


def test_a_slower_version_fails(pictures: Path, tmp_path: Path) -> None:
    with stub("--service-ms", 5) as old, stub("--service-ms", 100) as new:
        options = ("--images", pictures, "--fail-if-slower", "5%", *SHORT)
        done = loadtest("compare", old.url, new.url, *options, output=tmp_path)
    assert done.code == 1, done.out
    assert done.result["decision"] == "slower"
    assert "slower by more than 5.0%" in done.out
    assert len(done.result["values"]) == 5


def test_a_faster_version_passes(pictures: Path, tmp_path: Path) -> None:
    with stub("--service-ms", 100) as old, stub("--service-ms", 5) as new:
        options = ("--images", pictures, "--fail-if-slower", "5%", "--metric", "rate", *SHORT, "--duration", "600ms")
        done = loadtest("compare", old.url, new.url, *options, output=tmp_path)
    assert done.code == 0, done.out
    assert done.result["estimate"]["ratio"] < 0.8


def test_runs_shorter_than_an_answer_are_no_comparison(quick_stub: Running, pictures: Path, tmp_path: Path) -> None:
    with stub("--service-ms", 500) as slow:
        options = ("--images", pictures, "--metric", "rate", *SHORT, "--pairs", 2, "--confidence", 0.5)
        done = loadtest("compare", slow.url, quick_stub.url, *options, output=tmp_path)
    assert done.code == 3
    assert done.err.splitlines()[-1].endswith("a run has no answer within its time: give a longer --duration")


def test_pairs_that_the_generator_decided_decide_nothing(
    quick_stub: Running,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("alexnet_triton.loadtest.measure.BUSY", 0.0)
    words = ("compare", quick_stub.url, quick_stub.url, "--images", str(pictures), "--fail-if-slower", "900%")
    fewer = ("--pairs", "2", "--confidence", "0.5")
    assert main([*words, *map(str, SHORT), *fewer, "--output", str(tmp_path)]) == 4
    assert "the generator was the bottleneck in 4 of 4 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("/nowhere", "URL"), 2, "/nowhere is neither a server's address nor"),
        (("URL", "URL", "--pairs", "3"), 2, "--pairs 3 --confidence 0.99: a confidence of 0.99 takes 8 or more"),
        (("URL", "URL", "--confidence", "1"), 2, "--confidence 1: give 0.5"),
        (("URL", "http://127.0.0.1:9"), 3, "cannot connect"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...],
    code: int,
    message: str,
    quick_stub: Running,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [quick_stub.url if each == "URL" else each for each in options]
    assert main(["compare", *words, "--images", str(pictures), "--output", str(tmp_path)]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
