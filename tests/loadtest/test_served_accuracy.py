"""docs/served_accuracy.py, on a network that is called something else than alexnet."""

import json
import subprocess
import sys
from pathlib import Path

from tests.loadtest.stubs import ROOT
from tests.serving.tiny import LABELS, answer, jpeg, network, publication, publish

IMAGES = 12


def test_photographs_through_a_server_in_two_precisions(tmp_path: Path) -> None:
    repository, photographs = tmp_path / "built", tmp_path / "photographs"
    publish(repository, publication(tmp_path, name="colours"))
    photographs.mkdir()
    for seed in range(IMAGES):
        label = LABELS[int(answer(network(), jpeg(seed)).argmax())]
        (photographs / f"{seed}_{label.replace(' ', '_')}.jpg").write_bytes(jpeg(seed))
    words = ["--repository", repository, "--images", photographs, "--json", tmp_path / "found.json"]
    script = ROOT / "docs/served_accuracy.py"
    command = [sys.executable, script, *words, "--precisions", "fp32", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"fp32: top-1 1.0000, top-5 1.0000 on {IMAGES} photographs; differs from fp32 on 0,")
    fp32, bf16 = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert fp32["largest_difference"] == 0.0
    assert 0 <= bf16["largest_difference"] < 0.1
