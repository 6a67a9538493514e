"""The wheel as a user has it: in an environment and a folder of their own, with no checkout in sight."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from main_job import ROOT, MainJob

USES_THE_LIBRARY = """
from alexnet_triton.client import Classifier

with Classifier("grpc://127.0.0.1:8001") as classifier:
    reveal_type(classifier.classify("photo.jpg"))
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and what it depends on, and an empty folder to work in."""

    bin: Path
    folder: Path
    wheel: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / str(words[0])), *map(str, words[1:])]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )

    @property
    def environment(self) -> dict[str, str]:
        without = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        # TMPDIR: other servers of this machine are out of sight.
        return {**without, "PATH": f"{self.bin}{os.pathsep}/usr/bin:/bin", "TMPDIR": str(self.folder)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel is installed by pip; the packages that it depends on are those of this environment, by a path."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools builds in the folder that it is given
    ignored = shutil.ignore_patterns(".*", "artifacts", "build", "tests", "docs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    modules = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}))
    (modules / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    _pip("--python", folder / "venv/bin/python", "install", "--no-deps", "--ignore-installed", wheel)
    work = folder / "work"
    work.mkdir()
    return Installed(folder / "venv/bin", work, wheel)


def _pip(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_name_at_the_top(installed: Installed) -> None:
    names = {name.partition("/")[0] for name in zipfile.ZipFile(installed.wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"alexnet_triton"}


def test_files_that_modules_read_are_in_it(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert "alexnet_triton/training/claims/conditions.json" in names


def test_help_lists_every_command(installed: Installed) -> None:
    shown = installed.run("alexnet-triton", "--help")
    assert shown.returncode == 0
    for command in (
        "train",
        "evaluate",
        "figures",
        "export",
        "publish",
        "serve",
        "status",
        "stop",
        "loadtest",
        "bench",
    ):
        assert re.search(rf"^  {command} ", shown.stdout, re.MULTILINE)


@pytest.fixture
def photos(main_job: MainJob, installed: Installed) -> str:
    """A folder of photographs, fifteen a class to train on and five to test: the name, where the commands run."""
    for label in sorted((main_job.artifacts / "pictures").iterdir()):
        pictures = sorted(label.iterdir())
        for split, chosen in (("train", pictures[:15]), ("test", pictures[15:20])):
            (installed.folder / "photos" / split / label.name).mkdir(parents=True)
            for picture in chosen:
                shutil.copy(picture, installed.folder / "photos" / split / label.name)
    return "photos"


def test_from_training_to_a_load_test(installed: Installed, photos: str) -> None:
    data = ("--data", photos)
    steps = [
        ("train", *data, "--budget", 1, "--width", 0.0625, "--output", "checkpoint.pt"),
        ("pictures", *data, "--to", "test"),
        ("to-onnx", "checkpoint.pt", "onnx/model.onnx", "--images", "test"),
        ("publish", "onnx/model.onnx", "--images", "test", "--repository", "repository"),
    ]
    for step in steps:
        done = installed.run("alexnet-triton", *step)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
    picture = next((installed.folder / "test").glob("*/*.png"), None) or next((installed.folder / "test").glob("*/*"))
    for url in _serve(installed):
        for command in (("alexnet-classify",), ("alexnet-triton", "classify")):
            answered = installed.run(*command, picture, "--url", url, "--format", "json")
            assert answered.returncode == 0, answered.stderr
            assert '"top": [' in answered.stdout
        load = ("loadtest", "run", "--url", url, "--images", "test", "--rate", 20, "--duration", "2s")
        loaded = installed.run("alexnet-triton", *load)
        assert loaded.returncode == 0, (loaded.stdout, loaded.stderr)
    assert installed.run("alexnet-triton", "status").returncode == 1  # it was stopped: none runs


def _serve(installed: Installed) -> Iterator[str]:
    """The HTTP address of `alexnet-triton serve`, which is stopped by `alexnet-triton stop`."""
    command = [installed.bin / "alexnet-triton", "serve", "--repository", "repository"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [*command, *ports], cwd=installed.folder, env=installed.environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            ready = next(line for line in server.stdout if line.startswith("Ready:"))
            yield ready.split()[1]
        finally:
            server.terminate()
        assert server.wait(30) == 0


def test_a_type_checker_sees_the_types(installed: Installed) -> None:
    (installed.folder / "uses.py").write_text(USES_THE_LIBRARY)
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed.bin / "python", "uses.py"]
    done = subprocess.run(mypy, cwd=installed.folder, env=installed.environment, capture_output=True, text=True)
    assert 'Revealed type is "alexnet_triton.client.protocol.Classification"' in done.stdout, done.stdout
