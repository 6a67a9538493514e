"""`alexnet-triton export` as a command: what it lacks, a disk that is full, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet_triton.export import pipeline
from alexnet_triton.serving.repository import LOCK, Repository
from main_job import ROOT
from tests.export.small_checkpoint import sort_by_answer, write_checkpoint, write_onnx, write_pictures

IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as a checkpoint and another as an ONNX file, and pictures to test and to calibrate on."""
    folder = tmp_path_factory.mktemp("inputs")
    write_checkpoint(folder / "checkpoint.pt")
    (folder / "options.txt").write_text("\n".join(write_onnx(folder / "model.onnx")))
    sort_by_answer(write_pictures(folder / "test", 36), "alexnet_owt")
    write_pictures(folder / "calibration", 136)
    return folder


def export(model: Path, output: Path, *options: str) -> list[str]:
    """The words of an export; of options that are given twice the last one counts."""
    words = [str(model), "--rounds", "1"]
    for name in ("test", "calibration"):
        words += [f"--{name}", str(model.parent / name)]
    return [*words, "--onnx", str(output / "onnx"), "--repository", str(output / "model_repository"), *options]


def command(inputs: Path, output: Path, *more: str) -> list[str]:
    """The export of the ONNX file: what these tests look at comes after the seconds that a checkpoint takes more."""
    options = (inputs / "options.txt").read_text().splitlines()
    return [sys.executable, "-m", "alexnet_triton", "export", *export(inputs / "model.onnx", output, *options, *more)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an export leaves that has room."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(inputs, folder, "--force"), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "version 1 in" in done.stdout
    return folder


def test_a_disk_that_fills_up_at_any_stage(inputs: Path, whole: Path, tmp_path: Path) -> None:
    """A file system that holds two or four fifths of it all: one line, and whole files or none."""
    if subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("not run: this machine allows no mounts to its users")
    everything = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    for fifth in (2, 4):
        size = everything * fifth // 5
        script = f'mount -t tmpfs -o size={size} tmpfs "{disk}" && "$@"; code=$?; find "{disk}" -type f; exit $code'
        words = [*IN_A_NAMESPACE, "sh", "-c", script, "sh", *command(inputs, disk, "--force")]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
        said = [line for line in done.stderr.splitlines() if line.startswith("alexnet-triton export: ")]
        left = {str(Path(line).relative_to(disk)) for line in done.stdout.splitlines() if line.startswith(str(disk))}
        assert (done.returncode, len(said)) == (1, 1), done.stderr
        assert "no space left on device" in said[0].lower()
        assert "Traceback" not in done.stderr
        assert left <= files(whole)
        assert not any(name.startswith("model_repository/classify/config") for name in left)


def test_files_that_may_not_grow(inputs: Path, tmp_path: Path) -> None:
    words = ["sh", "-c", 'ulimit -f 200 && exec "$@"', "sh", *command(inputs, tmp_path / "output")]  # half kilobytes
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    said = f"alexnet-triton export: {tmp_path}/output/onnx/model.onnx: cannot be written (file too large)"
    assert done.stderr.splitlines()[-1].startswith(said)
    assert files(tmp_path / "output") == set()


@pytest.mark.parametrize("stage", ["started", "model.onnx"])
def test_interrupted_by_the_keyboard(inputs: Path, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "output"
    process = subprocess.Popen(
        command(inputs, output), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.5)
    while stage != "started" and not (output / "onnx" / stage).exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in said
    if stage == "started":  # while its modules load
        assert said == "alexnet-triton: interrupted; nothing was done\n"
    else:
        assert said.splitlines()[-1] == "alexnet-triton export: interrupted; nothing is left half written"
    assert not any(file.rpartition("/")[2].startswith(".") for file in files(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("publish", ["{onnx}", "--images", "{test}", "--repository", "{here}/built"]),
        ("verify", ["{onnx}", "--against", "{onnx}", "--images", "{test}"]),
        ("to-onnx", ["{checkpoint}", "{here}/model.onnx", "--images", "{test}"]),
    ],
)
def test_other_commands_are_interrupted_alike(
    inputs: Path, whole: Path, tmp_path: Path, name: str, words: list[str]
) -> None:
    """Wherever the signal meets them."""
    names = {"onnx": whole / "onnx/model.onnx", "test": inputs / "test", "here": tmp_path}
    filled = [word.format(checkpoint=inputs / "checkpoint.pt", **names) for word in words]
    for delay_s in (0.3, 0.6, 1.5, 3.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "alexnet_triton", name, *filled],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        # 0: it was done before; the signal itself: it met Python before the first line of this project, or after the
        # last, where Python, or what measures coverage, may say so. A shell says 130. While Python finds its packages,
        # it calls the signal a fatal error of its own.
        starting = said.startswith("Fatal Python error: init_import_site")
        assert starting or process.returncode in (0, 130, -signal.SIGINT), said
        assert f'File "{ROOT}' not in said.replace(sys.prefix, "")
        made = {file.rpartition("/")[2] for file in files(tmp_path)}
        assert {file for file in made if file.startswith(".")} <= {LOCK}
    if (tmp_path / "built/classify/config.pbtxt").exists():
        Repository.open(tmp_path / "built", "cpu")


def test_folders_that_are_not_there(tmp_path: Path, inputs: Path) -> None:
    words = [sys.executable, "-m", "alexnet_triton", "export", str(inputs / "checkpoint.pt")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "alexnet-triton export: artifacts/test: no such folder; `make export` makes it, or give --test\n"
    )


@pytest.mark.parametrize(("name", "count", "needed"), [("test", 20, 32), ("calibration", 100, 128)])
def test_too_few_images(
    inputs: Path, tmp_path: Path, name: str, count: int, needed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_pictures(tmp_path / "few", count)
    assert pipeline.main(export(inputs / "checkpoint.pt", tmp_path / "output", f"--{name}", str(few))) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"alexnet-triton export: {few}: {count} images, but {needed} are needed; add some"
    assert not (tmp_path / "output").exists()
