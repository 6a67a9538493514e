"""A simulated nvidia-smi, for what is asked of NVIDIA's driver before anything runs on a GPU. No GPU is behind it."""

import json
import sys
from pathlib import Path

import pytest

H100 = {"name": "NVIDIA H100 80GB HBM3", "driver_version": "580.65.06", "compute_cap": "9.0", "memory.total": "81559"}
OLD_DRIVER = {**H100, "driver_version": "535.104.05"}
OLD_GPU = {**H100, "name": "Tesla V100-SXM2-16GB", "compute_cap": "7.0"}

PROGRAM = """#!{python} -S
# Simulated: answers --query-gpu=FIELDS for the GPUs below, or those of -i NUMBERS, as nvidia-smi does.
import json, sys
(fields,) = [word.partition("=")[2].split(",") for word in sys.argv if word.startswith("--query-gpu=")]
gpus = json.loads({gpus!r})
chosen = sys.argv[sys.argv.index("-i") + 1].split(",") if "-i" in sys.argv else range(len(gpus))
for gpu in (gpus[int(number)] for number in chosen):
    print(", ".join(gpu[field] for field in fields))
"""


def write_nvidia_smi(folder: Path, *gpus: dict[str, str]) -> Path:
    """A program `nvidia-smi` in `folder` that lists these GPUs."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(PROGRAM.format(python=sys.executable, gpus=json.dumps(gpus)))
    program.chmod(0o755)
    return program


def simulate_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *gpus: dict[str, str]) -> None:
    """Have this process and what it starts find a simulated nvidia-smi first."""
    write_nvidia_smi(folder, *gpus)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
