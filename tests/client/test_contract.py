"""The command's contract: what it prints, in which order, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_triton.imaging import decode
from embedded_triton import dead_port

SCRIPT = Path(__file__).resolve().parents[2] / "client/classify.py"


def classify(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=60, check=False
    )


def expected(path: Path) -> np.ndarray:
    from linear_network import probabilities

    return probabilities(decode(path.read_bytes(), 227)[None])[0]


def test_json_gives_one_object_a_line_in_the_order_given(url: str, pictures: list[Path], tmp_path: Path) -> None:
    chosen = [pictures[3], pictures[0], pictures[7]]
    done = classify(*chosen, "--url", url, "--format", "json", "--top", 3, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == list(map(str, chosen))
    for line, path in zip(lines, chosen, strict=True):
        assert set(line) == {"path", "model", "version", "top", "ms"}
        assert (line["model"], line["version"]) == ("classify", "1")
        probabilities = expected(path)
        assert [entry["index"] for entry in line["top"]] == list(np.argsort(-probabilities)[:3])
        assert [entry["probability"] for entry in line["top"]] == pytest.approx(sorted(probabilities)[:-4:-1], abs=2e-6)


def test_bad_files_get_a_line_each_and_the_good_ones_are_classified(
    url: str, pictures: list[Path], tmp_path: Path
) -> None:
    bad = {
        tmp_path / "missing.jpg": None,
        tmp_path / "text.jpg": b"not a picture",
        tmp_path / "empty.jpg": b"",
        tmp_path / "cut.jpg": pictures[0].read_bytes()[:300],
    }
    for path, content in bad.items():
        if content is not None:
            path.write_bytes(content)
    named = [pictures[0], *bad, tmp_path, pictures[1]]
    done = classify(*named, "--url", url, "--format", "json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == list(map(str, named))
    assert ["error" in line for line in lines] == [False, True, True, True, True, True, False]
    complaints = done.stderr.splitlines()
    assert len(complaints) == 5
    assert all(str(path) in line for path, line in zip([*bad, tmp_path], complaints, strict=True))


def test_text_goes_to_standard_output_and_errors_do_not(url: str, pictures: list[Path], tmp_path: Path) -> None:
    done = classify(pictures[0], tmp_path / "none.jpg", "--url", url, "--top", 2)
    name, *classes = done.stdout.splitlines()
    assert name == str(pictures[0])
    assert len(classes) == 2
    assert done.stderr == f"alexnet-classify: {tmp_path}/none.jpg: no such file\n"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_listening_is_exit_3_and_one_line(scheme: str, pictures: list[Path], tmp_path: Path) -> None:
    earlier = tmp_path / "results.jsonl"
    earlier.write_text("kept")
    with dead_port() as port:
        done = classify(pictures[0], "--url", f"{scheme}://127.0.0.1:{port}", "--output", earlier)
    assert earlier.read_text() == "kept"
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}: cannot connect: connection refused; " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.jpg", "--format", "xml"],
        ["a.jpg", "--url", "ftp://here"],
        ["a.jpg", "--top", "0"],
        ["a.jpg", "--nosuch"],
    ],
)
def test_usage_is_exit_2_and_one_line(arguments: list[str]) -> None:
    done = classify(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
