"""Every sub-command is where the table says, and the import contracts hold and would notice a wrong import."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_triton.__main__ import COMMANDS, main
from main_job import ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
ROOMS = ("bulk", "client", "common", "export", "imaging", "loadtest", "serving", "training")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, "--help"])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0
    assert capsys.readouterr().out.startswith("usage: alexnet-")


def lint_imports(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml from `folder`."""
    command = [LINT_IMPORTS, "--no-logo", "--no-cache", "--config", ROOT / "pyproject.toml"]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)


def test_imports_follow_the_map() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("common/files.py", "from alexnet_triton.client import errors", "the map"),
        ("serving/errors.py", "from alexnet_triton.training import errors", "the map"),
        ("export/errors.py", "from alexnet_triton.bulk import inputs", "the map"),
        ("client/tls.py", "import torch", "the client needs neither PyTorch nor an engine"),
    ],
)
def test_an_import_against_the_map_is_noticed(module: str, line: str, contract: str, tmp_path: Path) -> None:
    package = tmp_path / "alexnet_triton"
    package.mkdir()
    shutil.copy(ROOT / "__init__.py", package)
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert any(row.startswith(contract) and row.endswith("BROKEN") for row in done.stdout.splitlines()), done.stdout
