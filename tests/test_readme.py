"""What the README tells a newcomer to type works as it stands."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from alexnet_triton.serving.server import Server
from main_job import ROOT, MainJob, make

README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Every line of the README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=280)


def test_every_make_target_exists(main_job: MainJob) -> None:
    targets = [command.split()[1] for command in commands() if command.startswith("make ")]
    assert {"demo", "test", "serve"} <= set(targets)
    for target in targets:
        assert make("--dry-run", target, artifacts=main_job.artifacts).returncode == 0


@pytest.mark.parametrize("command", [each for each in commands() if "classify.py" in each])
def test_client_commands(command: str, main_job: MainJob, server: Server) -> None:
    """As written, but for the ports: the tests' server takes free ones."""
    ported = command.replace("artifacts/pictures", f"{main_job.artifacts}/pictures")
    ported = ported.replace("http://127.0.0.1:8000", f"http://{server.http_address}")
    if "--url" not in ported:
        ported += f" --url grpc://{server.grpc_address}"
    done = run(ported, ROOT)
    assert done.returncode == 0, done.stderr


def test_your_own_photographs(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, colour in (("blue", "blue"), ("red", "red")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (64, 48 + number), colour).save(folder / f"{number}.jpg")
    mine = [each for each in commands() if "photos" in each]
    assert len(mine) == 4
    for command in mine[:3]:
        program = command.replace(".venv/bin/python", str(ROOT / ".venv/bin/python")).replace("3600", "2 --width 0.25")
        done = run(program, tmp_path)
        assert done.returncode == 0, done.stderr
    repository = Path(shlex.split(mine[3])[-1])
    with Server(tmp_path / repository, http_port=0, grpc_port=0, metrics_port=0) as running:
        running.check()
    shutil.rmtree(tmp_path / "artifacts")


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
