"""What figures were measured on, for reports."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """Hardware, versions and the command of this process."""
    packages = {name: version(name) for name in ("torch", "numpy", "pillow")}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        **gpu,
        "versions": {"python": platform.python_version(), **packages},
        "command": command(),
    }


def command() -> str:
    """This process's command line, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec and spec.name else Path(sys.argv[0]).name
    return shlex.join([*shlex.split(program), *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
