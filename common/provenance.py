"""Where and with what a figure was made: the machine, the versions, the command."""

import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECRET_OPTIONS = ("--header",)
MOST_CORES = 1e6
_GROUPS = Path("/sys/fs/cgroup")
_NVIDIA = Path("/proc/driver/nvidia/gpus")
# What CUDA 13 needs, for which NVIDIA's images from 25.08 on and the wheels of PyTorch, TensorRT and DALI are made.
# Sources: CUDA Toolkit 13 release notes; Triton release notes 26.09. docker/check_gpu.sh has the same rule.
OLDEST_DRIVER, OLDEST_CAPABILITY = 580, (7, 5)
_FIELDS = "name,driver_version,compute_cap,memory.total"
_QUERY = ("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
_QUERY_S = 30.0  # of a machine with many GPUs whose driver keeps no state between its users


def describe_machine() -> dict[str, object]:
    """Processor, cores that this process may use, memory in GiB, system, and NVIDIA's GPUs where there are any."""
    gpus = gpu_names()
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        **({"gpus": gpus} if gpus else {}),
    }


def describe_run(packages: Sequence[str]) -> dict[str, object]:
    """Machine, versions of these packages, and the command of this process."""
    return {**describe_machine(), "versions": describe_versions(packages), "command": describe_command()}


def describe_hardware() -> str:
    """The machine in one line: processor, cores, GPUs."""
    return ", ".join([processor_name(), f"{usable_cores()} cores", *gpu_names()])


def processor_name() -> str:
    """The processor's name as Linux has it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the quota of its control groups, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(quota_cores())))


def quota_cores(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that the control groups of this process allow; at most a million. See cgroups(7)."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # no Linux
        return MOST_CORES
    folders = [groups / path.strip("/") for _, controllers, path in lines if not controllers]
    folders += [groups / "cpu" / path.strip("/") for _, controllers, path in lines if "cpu" in controllers.split(",")]
    return min((_quota(each) for folder in folders for each in (folder, *folder.parents)), default=MOST_CORES)


def _quota(folder: Path) -> float:
    """Of one group: cpu.max holds quota and period in microseconds (version 2), or each has a file (version 1)."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (folder.joinpath(f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else MOST_CORES
    except (OSError, ValueError):  # no such group, or no bound: "max"
        return MOST_CORES


def gpu_names() -> list[str]:
    """NVIDIA's GPUs, as its driver names them."""
    files = sorted(_NVIDIA.glob("*/information")) if _NVIDIA.is_dir() else []
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


@dataclass(frozen=True)
class InstalledGpu:
    """A GPU of this machine, as its driver describes it."""

    name: str
    driver: str  # as 580.65.06
    compute_capability: str  # as 9.0
    memory_mib: int


def installed_gpus() -> list[InstalledGpu]:
    """NVIDIA's GPUs that this process may use: those that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves.

    None where there is no driver, or nvidia-smi fails.
    """
    if not shutil.which(_QUERY[0]):
        return []
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    complete = [row for row in rows if len(row) == _FIELDS.count(",") + 1 and row[3].isdecimal()]
    gpus = [InstalledGpu(name, driver, capability, int(memory)) for name, driver, capability, memory in complete]
    return _visible(gpus) if done.returncode == 0 else []


def _visible(gpus: list[InstalledGpu]) -> list[InstalledGpu]:
    """Of a list of numbers, those up to the first that there is none of. A UUID is not looked up, but taken for one."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return gpus
    names = [name.strip() for name in given.split(",")]
    valid = [not name.isdecimal() or int(name) < len(gpus) for name in names if name and not name.startswith("-")]
    count = valid.index(False) if False in valid else len(valid)
    return [gpus[int(name)] if name.isdecimal() else gpus[0] for name in names[:count]] if gpus else []


def gpu_fault(gpus: Sequence[InstalledGpu]) -> str:
    """Why CUDA 13 does not run on these GPUs, with the next step; empty where it does."""
    if not gpus:
        return f"no GPU: nvidia-smi is not there or lists none; install NVIDIA's driver, R{OLDEST_DRIVER} or newer"
    driver = gpus[0].driver
    if int(driver.partition(".")[0] or 0) < OLDEST_DRIVER:
        return f"NVIDIA driver {driver} is too old for CUDA 13: install R{OLDEST_DRIVER} or newer"
    for gpu in gpus:
        if tuple(map(int, gpu.compute_capability.split("."))) < OLDEST_CAPABILITY:
            has = f"{gpu.name} has compute capability {gpu.compute_capability}"
            return f"{has}, and CUDA 13 needs 7.5: hide it with CUDA_VISIBLE_DEVICES"
    return ""


def describe_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    from importlib import metadata  # half of this module's import, which every stub waits for

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_command(words: Sequence[str] | None = None) -> str:
    """A command line as one would type it, without its secrets. Default: this process's own."""
    if words is None:
        words = [Path(sys.argv[0]).name.replace("__main__.py", "alexnet-triton"), *sys.argv[1:]]
    shown, hide = [], False
    for word in words:
        name, _, value = word.partition("=")
        if hide:
            shown.append(_hidden(word))
        elif name in SECRET_OPTIONS and value:
            shown.append(f"{name}={_hidden(value)}")
        else:
            shown.append(word)
        hide = word in SECRET_OPTIONS
    return shlex.join(shown)


def _hidden(header: str) -> str:
    return f"{header.partition(':')[0]}: ..."
