"""The cores that a process may use: by its affinity, and by the quota of its control groups."""

import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_triton.common.provenance import MOST_CORES, quota_cores

COUNT = (
    "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    "from alexnet_triton.common.provenance import usable_cores; print(usable_cores())"
)


def test_affinity_counts() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/", {"cpu.max": "max 100000"}, MOST_CORES),
        ("0::/pods/one", {"pods/one/cpu.max": "max 100000", "pods/cpu.max": "300000 100000"}, 3),
        ("0::/pods/one", {"pods/one/cpu.max": "50000 100000", "pods/cpu.max": "300000 100000"}, 0.5),
        (
            "5:memory:/one\n4:cpu,cpuacct:/one",
            {"cpu/one/cpu.cfs_quota_us": "200000\n", "cpu/one/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, MOST_CORES),
        ("0::/gone", {}, MOST_CORES),
    ],
)
def test_quotas(own: str, files: dict[str, str], cores: float, tmp_path: Path) -> None:
    """Files as the kernel writes them: a test may not make control groups on every machine."""
    (tmp_path / "own").write_text(f"{own}\n")
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert quota_cores(tmp_path / "groups", tmp_path / "own") == cores


def test_without_control_groups_nothing_is_bounded(tmp_path: Path) -> None:
    assert quota_cores(tmp_path, tmp_path / "absent") == MOST_CORES
