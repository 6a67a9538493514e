"""The first step on a machine whose python3 the embedded Triton cannot run with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from main_job import ROOT

# What a newer Python than the wheels' runs: this one under another number, as no other is at hand.
NEWER = "import runpy, sys; sys.version_info = (3, 14, 0, 'final', 0); sys.argv = ['install.py', 'serve']; "
RUN = f"runpy.run_path({str(ROOT / 'install.py')!r}, run_name='__main__')"


def _install(folder: Path, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run install.py in `folder` with nothing on PATH but `programs`: name -> shell script."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, script in programs.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": str(bin_folder)}
    command = [sys.executable, "-c", NEWER + RUN]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_a_newer_python_alone_is_told_what_to_do(tmp_path: Path) -> None:
    done = _install(tmp_path, {})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("make: this is Python 3.14, and the embedded Triton runs with 3.10 to 3.12: install uv")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("version", ["3.12", "3.10"])
def test_an_older_python_beside_it_makes_the_environment(tmp_path: Path, version: str) -> None:
    done = _install(tmp_path, {f"python{version}": 'echo "$@" >asked; exit 1'})
    assert (tmp_path / "asked").read_text() == "-m venv .venv\n"
    assert "sudo apt-get install python3-venv" in done.stderr


def test_uv_brings_a_python_where_there_is_none(tmp_path: Path) -> None:
    _install(tmp_path, {"uv": 'echo "$@" >asked; exit 1'})
    assert (tmp_path / "asked").read_text() == "venv --quiet --seed --python 3.12 .venv\n"


def test_an_environment_of_the_wrong_python_is_made_anew(tmp_path: Path) -> None:
    for file in ("bin/python", "bin/pip", "old"):
        (tmp_path / ".venv" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv" / file).touch()
    (tmp_path / ".venv/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.13.1\n")
    _install(tmp_path, {"python3.11": "exit 1"})
    assert not (tmp_path / ".venv").exists()


def test_a_failing_pip_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").write_text("version = 3.11.7\n")
    (tmp_path / ".venv/bin/python").touch()
    (tmp_path / ".venv/bin/pip").write_text("#!/bin/sh\necho Collecting numpy\necho 'ERROR: no space left'\nexit 1\n")
    (tmp_path / ".venv/bin/pip").chmod(0o755)
    done = _install(tmp_path, {})
    assert done.returncode == 1
    assert done.stderr == "make: pip failed: ERROR: no space left; its whole output is in .venv/pip.log\n"
    assert "Collecting numpy" in (tmp_path / ".venv/pip.log").read_text()


def test_packages_are_compiled_while_pip_runs(tmp_path: Path) -> None:
    """A pip that ends once a package, which it has unpacked, is compiled; a package's own tests are not."""
    modules = tmp_path / ".venv/lib/python3/site-packages"
    for file in ("one/core.py", "one/tests/all.py"):
        (modules / file).parent.mkdir(parents=True)
        (modules / file).write_text("x = 1\n")
    (modules / "one-1.dist-info").mkdir()
    (modules / "one-1.dist-info/RECORD").write_text("one/core.py,sha256=a,6\none/tests/all.py,,\n")
    bin_folder = tmp_path / ".venv/bin"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(sys.executable)
    compiled = modules / f"one/__pycache__/core.{sys.implementation.cache_tag}.pyc"
    pip = f"for each in $(seq 300); do [ -f {compiled} ] && touch pip-saw-it && exit; sleep 0.1; done"
    (bin_folder / "pip").write_text(f"#!/bin/sh\n{pip}\n")
    (bin_folder / "pip").chmod(0o755)
    (tmp_path / ".venv/pyvenv.cfg").write_text("version = 3.11.7\n")
    command = [sys.executable, str(ROOT / "install.py"), "serve"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pip-saw-it").exists()
    assert not (modules / "one/tests/__pycache__").exists()
