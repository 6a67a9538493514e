"""What make installs with: a Python that the embedded Triton runs with, then uv, or pip where uv cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from main_job import ROOT

# What a newer Python than the wheels' runs: this one under another number, as no other is at hand.
NEWER = "import runpy, sys; sys.version_info = (3, 14, 0, 'final', 0); sys.argv = ['install.py', 'serve']; "
RUN = f"runpy.run_path({str(ROOT / 'install.py')!r}, run_name='__main__')"


def _install(folder: Path, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run install.py in `folder` with nothing on PATH but what compiles and `programs`: name -> shell script."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name in ("sh", "find", "xargs", "getconf"):
        (bin_folder / name).symlink_to(shutil.which(name) or name)
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


def _environment(folder: Path, pip: str) -> Path:
    """A .venv of this Python in `folder`, with a script for its pip; returns the folder of its modules."""
    modules = folder / ".venv/lib/python3/site-packages"
    for file in ("one/core.py", "one/tests/all.py"):
        (modules / file).parent.mkdir(parents=True)
        (modules / file).write_text("x = 1\n")
    (folder / ".venv/bin").mkdir()
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    (folder / ".venv/bin/pip").write_text(f"#!/bin/sh\n{pip}\n")
    (folder / ".venv/bin/pip").chmod(0o755)
    (folder / ".venv/pyvenv.cfg").write_text("version = 3.11.7\n")
    return modules


def test_uv_installs_from_where_pip_would(tmp_path: Path) -> None:
    config = """
[ "$1" = config ] || exit 9
/bin/cat <<EOF
:env:.find-links='/opt/wheels /opt/more'
global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'
global.find-links='/elsewhere'
global.index-url='https://mirror.example/simple'
EOF"""
    _environment(tmp_path, config)
    names = ("UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX_STRATEGY")
    said = "; ".join(f'echo "${name}"' for name in names)
    done = _install(tmp_path, {"uv": f'(echo "$*"; {said}) >asked'})
    assert done.returncode == 0, done.stderr
    command, *places = (tmp_path / "asked").read_text().splitlines()
    assert command == "pip install --no-progress --python .venv/bin/python -c requirements.lock -e .[serve]"
    extra = "https://a.example/simple https://b.example/simple"
    assert places == ["https://mirror.example/simple", extra, "/opt/wheels,/opt/more", "unsafe-best-match"]


def test_pip_installs_where_uv_cannot(tmp_path: Path) -> None:
    modules = _environment(tmp_path, 'echo "$*" >>asked')
    done = _install(tmp_path, {"uv": "exit 2"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines()[-1].endswith("-c requirements.lock -e .[serve]")
    assert list(modules.glob("one/__pycache__/core.*.pyc"))
    assert not (modules / "one/tests/__pycache__").exists(), "a package's own tests are not compiled"


def test_pip_brings_uv_where_there_is_none(tmp_path: Path) -> None:
    uv = tmp_path / ".venv/bin/uv"
    script = f"[ $1 = config ] && exit; echo '#!/bin/sh' >{uv}; echo 'echo $* >asked' >>{uv}; /bin/chmod +x {uv}"
    _environment(tmp_path, script)
    done = _install(tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().startswith("pip install --no-progress --python .venv/bin/python")
