"""Where and with what a figure was made."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("alexnet-triton", "hdrhistogram", "grpcio", "aiohttp", "locust", "mlcommons-loadgen")
SECRET_OPTIONS = ("--header",)


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory, system."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }


def describe_versions() -> dict[str, str]:
    """Python and the packages that take part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_command(words: Sequence[str]) -> str:
    """The command line, without what is secret in it."""
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
    return shlex.join(["python", "-m", "loadtest", *shown])


def _hidden(header: str) -> str:
    return f"{header.partition(':')[0]}: ..."


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
