"""Where tritonserver is, and what has to stand around it."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InstallationError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Installation:
    """A tritonserver. `wheel` is the folder of nvidia-pytriton around it, None for an image of NVIDIA's."""

    binary: Path
    wheel: Path | None

    @property
    def library_dirs(self) -> list[Path]:
        """What LD_LIBRARY_PATH has to name."""
        if self.wheel is None:
            return []
        # The stub links libpython; the server links what the wheel's build tool put beside the package.
        return [self.wheel.parents[1] / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]

    def backend_links(self) -> dict[str, Path]:
        """Name in the Python backend's folder -> file of the wheel.

        Raises:
            InstallationError: the wheel has no stub for this Python.
        """
        assert self.wheel is not None
        backend = self.wheel / "backends" / "python"
        stub = self.wheel / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
        if not stub.is_file():
            raise InstallationError(f"nvidia-pytriton has nothing for Python {PYTHON_VERSION}: use 3.10, 3.11 or 3.12")
        files = [backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub]
        return {file.name: file for file in files}


def find_installation(binary: str | Path | None = None) -> Installation:
    """Find tritonserver: `binary`, the environment's TRITONSERVER, the wheel nvidia-pytriton, PATH.

    Raises:
        InstallationError: none of them, or the one asked for cannot be run.
    """
    asked = binary or os.environ.get("TRITONSERVER")
    if asked:
        path = Path(asked)
        if not os.access(path, os.X_OK) or path.is_dir():
            raise InstallationError(f"{asked} is not a program: name a tritonserver binary, or leave it to be found")
        return _describe(path)
    for path in _candidates():
        if os.access(path, os.X_OK):
            return _describe(path)
    raise InstallationError("no tritonserver: run `make setup`, or name one with TRITONSERVER")


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pytriton")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        yield Path(folder) / "tritonserver" / "bin" / "tritonserver"
    on_path = shutil.which("tritonserver")
    if on_path:
        yield Path(on_path)


def _describe(binary: Path) -> Installation:
    binary = binary.resolve()
    folder = binary.parents[1]
    return Installation(binary, folder if (folder / "python_backend_stubs").is_dir() else None)
