"""`gpu-check` as far as it goes without a GPU: what it refuses, its steps' command lines, and what a failure leaves.

The drivers here are simulated: an nvidia-smi that lists GPUs, and a module `tensorrt` that has nothing but a version.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alexnet_triton.__main__ import main
from alexnet_triton.common.provenance import InstalledGpu
from alexnet_triton.loadtest.bench import bound, gpu_check
from alexnet_triton.loadtest.bench.gpu_steps import OURS, STEPS, CheckConfig, NotRunError, Step, StepError
from alexnet_triton.serving.engine import EngineConfig
from alexnet_triton.serving.plan_engine import Device, PlanEngine
from main_job import make
from tests.serving.simulated_cuda import Driver, Runtime
from tests.serving.tiny import network
from tests.simulated_driver import H100, OLD_DRIVER, OLD_GPU, simulate_driver

GPU = InstalledGpu(H100["name"], H100["driver_version"], H100["compute_cap"], int(H100["memory.total"]))
without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated one, of a version that is taken."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/tensorrt.py").write_text('__version__ = "11.4.0"\n')
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))


@pytest.fixture
def config(tmp_path: Path) -> CheckConfig:
    """Of a machine with two GPUs, with nothing exported."""
    names = ("repository", "folder", "onnx", "test", "images")
    return CheckConfig("gpu-python", *(tmp_path / name for name in names), (GPU, GPU), "0,1")


@pytest.mark.parametrize(
    ("gpus", "line"),
    [
        ([], "no GPU: nvidia-smi is not there or lists none; install NVIDIA's driver, R580 or newer"),
        ([OLD_DRIVER], "NVIDIA driver 535.104.05 is too old for CUDA 13: install R580 or newer"),
        (
            [OLD_GPU],
            "Tesla V100-SXM2-16GB has compute capability 7.0, and CUDA 13 needs 7.5: hide it with CUDA_VISIBLE_DEVICES",
        ),
    ],
    ids=["no GPU", "old driver", "old GPU"],
)
def test_without_a_gpu_it_ends_in_one_line(
    gpus: list[dict[str, str]],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, *gpus)
    assert main(["gpu-check", "--folder", str(tmp_path / "check")]) == 3
    assert capsys.readouterr() == ("", f"alexnet-triton gpu-check: {line}\n")
    assert not (tmp_path / "check").exists()


@pytest.mark.parametrize("target", ["gpu", "gpu-check"])
def test_make_ends_in_one_line_before_anything_is_made(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is the script's; make adds its own, as to every command that fails."""
    simulate_driver(tmp_path / "bin", monkeypatch, OLD_DRIVER)
    done = make(target, artifacts=tmp_path / "artifacts")
    line = "NVIDIA driver 535.104.05 is too old for CUDA 13: install R580 or newer, or serve on the processor"
    first, second = done.stderr.splitlines()
    assert (done.returncode, done.stdout, first) == (2, "", f"check_gpu: {line}")
    assert second.startswith("make: *** ")
    assert not (tmp_path / "artifacts").exists()


@without_tensorrt
def test_without_tensorrt_it_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, H100)
    assert main(["gpu-check"]) == 3
    line = "tensorrt is not installed: pip install 'alexnet-triton[gpu]' (No module named 'tensorrt')"
    assert capsys.readouterr() == ("", f"alexnet-triton gpu-check: {line}\n")


def test_with_two_gpus_failed_steps_are_reported_and_the_next_one_runs(
    tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated, so that every step that wants a GPU fails: each in one line, with its log."""
    simulate_driver(tmp_path / "bin", monkeypatch, H100, H100)
    check, file = tmp_path / "check", tmp_path / "h100.json"
    words = ["--folder", str(check), "--json", str(file), "--onnx", str(tmp_path)]
    assert main(["gpu-check", *words, "--only", "plan-fp16", "engine"]) == 1
    said = capsys.readouterr()
    first, second, third, last = said.out.splitlines()
    both = "NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3"
    assert first == f"{both}, driver 580.65.06; the first is measured, and training uses all 2"
    assert second.startswith("plan-fp16 ")
    assert third.startswith("engine ")
    assert last == f"{file}: 0 of 2 steps done"
    lines = said.err.splitlines()
    assert lines[0].startswith("alexnet-triton gpu-check: plan-fp16: exit code 1, alexnet-triton build-engine: ")
    assert lines[0].endswith(f": see {check / 'plan-fp16.log'}")
    assert lines[1].startswith("alexnet-triton gpu-check: engine: exit code 2")
    assert len(lines) == 2
    assert list(json.loads(file.read_text())["steps"]) == ["plan-fp16", "engine"]
    assert "| engine | the plans in process, batch 1 to 64 | failed: exit code 2" in file.with_suffix(".md").read_text()


def test_a_step_again_leaves_the_others_figures(
    tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, H100)
    rows = [{"batch": 32, "images_per_s": 90_000.0, "images_per_joule": 210.0}]
    write = [
        sys.executable,
        "-c",
        f"import json; json.dump({{'fp16': {rows}}}, open({str(tmp_path / 'x.json')!r}, 'w'))",
    ]
    read = lambda config: {"engine": json.loads((tmp_path / "x.json").read_text())}  # noqa: E731
    monkeypatch.setitem(gpu_check.STEPS, "engine", replace(STEPS["engine"], commands=lambda config: [write], read=read))
    file = tmp_path / "h100.json"
    file.write_text(json.dumps({"steps": {"ddp": {"what": "training", "state": "done"}}}))
    assert main(["gpu-check", "--folder", str(tmp_path / "check"), "--json", str(file), "--only", "engine"]) == 0
    found = json.loads(file.read_text())
    assert list(found["steps"]) == ["engine", "ddp"]
    assert found["steps"]["engine"]["figures"] == {"engine": {"fp16": rows}}
    assert "| fp16: 90,000 images/s at batch 32, 210 images/J |" in file.with_suffix(".md").read_text()
    assert capsys.readouterr().out.splitlines()[0] == "NVIDIA H100 80GB HBM3, driver 580.65.06"


def test_the_limits_are_20_minutes() -> None:
    assert sum(step.limit_s for step in STEPS.values()) == 20 * 60


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(config: CheckConfig, tmp_path: Path) -> None:
    config.folder.mkdir()
    started = tmp_path / "started"
    words = ["sh", "-c", f"sleep 60 & echo $! >{started}; wait"]
    with pytest.raises(StepError, match=r"not done in 0\.5 s: see .*step\.log"):
        gpu_check.run_step(Step("nothing", 0.5, lambda config: [words]), config, tmp_path / "step.log")
    stat = Path(f"/proc/{started.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


@pytest.mark.parametrize("name", STEPS)
def test_every_step_s_commands_are_taken_by_their_program(
    name: str, config: CheckConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """One word more, which none has, is all that they complain of."""
    for precision in ("fp16", "int8"):
        config.plan(precision).parent.mkdir(parents=True)
        config.plan(precision).touch()
    for words in STEPS[name].commands(config):
        if words[: len(OURS)] == OURS:
            with pytest.raises(SystemExit) as end:
                main([*words[len(OURS) :], "--no-such-option"])
            assert (end.value.code, "unrecognized arguments: --no-such-option" in capsys.readouterr().err) == (2, True)
        else:
            assert Path(words[1]).is_file() or importlib.util.find_spec(words[2])


def test_one_gpu_trains_alone(config: CheckConfig, tmp_path: Path) -> None:
    with pytest.raises(NotRunError, match="not run: one GPU"):
        gpu_check.run_step(STEPS["ddp"], replace(config, gpus=(GPU,)), tmp_path / "log")


def test_the_rate_of_the_loads_is_that_which_was_served(config: CheckConfig) -> None:
    config.folder.mkdir()
    rows = [
        {"target": "bound, no server", "images_per_s": 900.0},
        {"target": "this server, HTTP", "images_per_s": 400.0},
    ]
    config.written("bench").write_text(json.dumps({"stages": {"served": {"summary": rows}}}))
    rates = [words[words.index("--rate") + 1] for words in STEPS["latency"].commands(config)]
    assert rates == ["200.0", "320.0"]


def test_plans_are_timed_in_parts(tmp_path: Path) -> None:
    """With a simulated CUDA: what is counted, not how fast it is."""
    (tmp_path / "model.plan").write_bytes(network().SerializeToString())
    driver = Driver()
    config = EngineConfig(max_batch_size=4, engine="tensorrt")
    engine = PlanEngine(tmp_path, config, Device(0, driver), Runtime(driver, largest=4))
    joules = iter(range(100))
    rows = bound.measure_plan(engine, 0.01, lambda: next(joules))
    assert [row["batch"] for row in rows] == [1, 2, 4]
    assert all(row[name] > 0 for row in rows for name in ("layers_ms", "graph_ms", "copies_ms", "whole_ms"))
    assert all(row["images_per_s"] > 0 and row["images_per_joule"] > 0 for row in rows)
    assert "images_per_joule" not in bound.measure_plan(engine, 0.01)[0]
