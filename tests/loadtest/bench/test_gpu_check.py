"""`gpu-check` as far as it goes without a GPU: what it refuses, its steps' command lines, and what a failure leaves.

The drivers here are simulated: an nvidia-smi that lists GPUs, and a module `tensorrt` that has nothing but a version.
"""

import ast
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alexnet_triton.__main__ import main
from alexnet_triton.common.provenance import InstalledGpu
from alexnet_triton.loadtest.bench import bound, compare, gpu_check, gpu_steps
from alexnet_triton.loadtest.bench.config import BenchConfig, BenchError
from alexnet_triton.loadtest.bench.gpu_steps import OURS, STEPS, CheckConfig, NotRunError, Step, StepError
from alexnet_triton.loadtest.bench.servers import Triton
from alexnet_triton.loadtest.bench.wrk import Load
from alexnet_triton.serving.engine import EngineConfig
from alexnet_triton.serving.plan_engine import Device, PlanEngine
from main_job import ROOT, make
from small_graphs import small_graph
from tests.serving.simulated_cuda import Driver, Runtime
from tests.serving.tiny import network
from tests.simulated_driver import H100, OLD_DRIVER, OLD_GPU, simulate_driver
from tests.waiting import wait_for

GPU = InstalledGpu(H100["name"], H100["driver_version"], H100["compute_cap"], int(H100["memory.total"]))
without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A simulated one, of a version that is taken; later tests do not find it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/tensorrt.py").write_text('__version__ = "11.4.0"\n')
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    yield
    sys.modules.pop("tensorrt", None)


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
    assert (
        lines[1]
        == f"alexnet-triton gpu-check: engine: no plan in {check}: run the steps plan-fp16 and plan-int8 before it"
    )
    assert len(lines) == 2
    assert list(json.loads(file.read_text())["steps"]) == ["plan-fp16", "engine"]
    assert "| engine | the plans in process, batch 1 to 64 | failed: no plan in" in file.with_suffix(".md").read_text()


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
    read = lambda config: {"engine": {"plans": json.loads((tmp_path / "x.json").read_text())}}  # noqa: E731
    monkeypatch.setitem(gpu_check.STEPS, "engine", replace(STEPS["engine"], commands=lambda config: [write], read=read))
    file = tmp_path / "h100.json"
    file.write_text(json.dumps({"steps": {"ddp": {"what": "training", "state": "done"}}}))
    assert main(["gpu-check", "--folder", str(tmp_path / "check"), "--json", str(file), "--only", "engine"]) == 0
    found = json.loads(file.read_text())
    assert list(found["steps"]) == ["engine", "ddp"]
    assert found["steps"]["engine"]["figures"] == {"engine": {"plans": {"fp16": rows}}}
    assert "| fp16: 90,000 images/s, 210 images/J at batch 32 |" in file.with_suffix(".md").read_text()
    assert capsys.readouterr().out.splitlines()[0] == "NVIDIA H100 80GB HBM3, driver 580.65.06"


def test_a_step_may_be_left_out_and_one_that_fails_stops_no_other(
    tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, H100)
    for name in STEPS:
        program = "false" if name == "engine" else "true"
        monkeypatch.setitem(STEPS, name, Step(name, 60, lambda config, program=program: [[program]]))
    file = tmp_path / "h100.json"
    words = ["gpu-check", "--folder", str(tmp_path / "check"), "--json", str(file), "--skip", "tests", "ddp"]
    assert main(words) == 1
    done = {name: each["state"] for name, each in json.loads(file.read_text())["steps"].items()}
    assert list(done) == [name for name in STEPS if name not in ("tests", "ddp")]
    assert done.pop("engine").startswith("failed: exit code 1, no output")
    assert set(done.values()) == {"done"}
    assert capsys.readouterr().out.endswith("9 of 10 steps done\n")


def test_figures_have_the_gpu_s_name_and_an_image_a_file_of_its_own(
    tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, H100)
    monkeypatch.chdir(tmp_path)
    words = ["gpu-check", "--folder", str(tmp_path / "check"), "--only", "ddp"]
    for variant in ("gpu-python", "gpu"):
        assert main([*words, "--variant", variant]) == 0
    names = sorted(path.name for path in (tmp_path / "docs/gpu").iterdir())
    name = "nvidia-h100-80gb-hbm3"
    assert names == [f"{name}-image.json", f"{name}-image.md", f"{name}.json", f"{name}.md"]
    assert "| ddp | training steps on all GPUs together | not run: one GPU |" in Path(f"docs/gpu/{name}.md").read_text()


def test_the_readme_has_the_table_once_there_are_figures(tmp_path: Path) -> None:
    readme, folder = tmp_path / "README.md", tmp_path / "docs/gpu"
    folder.mkdir(parents=True)
    empty = f"before {gpu_check.START}{gpu_check.END}\nafter\n"
    readme.write_text(empty)
    gpu_check.put_into(readme, folder)
    assert readme.read_text() == empty
    row = {"target": "this server, HTTP", "connections": 64, "images_per_s": 5000.0, "images_per_joule": 21.0}
    slower = {**row, "connections": 1, "images_per_s": 900.0}
    figures = {"summary": [slower, row], "ratios": {"of the bound": 0.9}, "energy": "NVML's count of the first GPU"}
    steps = {
        "served": {"what": "JPEGs", "state": "done", "figures": figures},
        "engine": {"what": "", "state": "failed"},
    }
    (folder / "h100.json").write_text(json.dumps({"steps": steps}))
    for _ in range(2):
        gpu_check.put_into(readme, folder)
        said = "this server, HTTP: 5,000 images/s, 21 images/J; 0.90 of the bound"
        assert f"| [h100](docs/gpu/h100.md) | JPEGs | {said} |\n\n{gpu_check.END}\nafter\n" in readme.read_text()
        assert readme.read_text().count("h100.md") == 1
    readme.write_text("no marks")
    with pytest.raises(BenchError, match="no <!-- gpu figures -->"):
        gpu_check.put_into(readme, folder)
    assert (
        gpu_check.START + gpu_check.END in (ROOT / "README.md").read_text()
        or "](docs/gpu/" in (ROOT / "README.md").read_text()
    )


def test_the_limits_are_20_minutes() -> None:
    assert sum(step.limit_s for step in STEPS.values()) == 20 * 60


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(config: CheckConfig, tmp_path: Path) -> None:
    config.folder.mkdir()
    started = tmp_path / "started"
    words = ["sh", "-c", f"sleep 60 & echo $! >{started}; wait"]
    with pytest.raises(StepError, match=r"not done in 0\.5 s: see .*step\.log"):
        gpu_check.run_step(Step("nothing", 0.5, lambda config: [words]), config, tmp_path / "step.log")
    stat = Path(f"/proc/{started.read_text().strip()}/stat")
    wait_for(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")


def test_sigterm_ends_the_step_and_all_that_it_started(
    tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, H100)
    script = f"echo $$ >{tmp_path}/started; kill -TERM {os.getpid()}; sleep 20; echo late >{tmp_path}/late"
    monkeypatch.setitem(STEPS, "engine", Step("nothing", 15, lambda config: [["sh", "-c", script]]))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # where it is not heard, the step takes its time
    try:
        assert (
            main(
                [
                    "gpu-check",
                    "--folder",
                    str(tmp_path / "check"),
                    "--json",
                    str(tmp_path / "x.json"),
                    "--only",
                    "engine",
                ]
            )
            == 130
        )
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    stat = Path(f"/proc/{(tmp_path / 'started').read_text().strip()}/stat")
    wait_for(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
    assert not (tmp_path / "late").exists()


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


def skips_for_want_of_a_gpu(source: str) -> Iterator[str]:
    """Skips that are not by the mark `gpu`, so that `gpu-check` would not run the test."""
    wanting = re.compile(
        r"\bno GPU\b|[Ww]ithout a GPU|needs a GPU|no tensorrt|tensorrt is not|not (has_gpu|installed_gpus)\("
    )
    for node in ast.walk(ast.parse(source)):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_call and node.func.attr in ("skip", "skipif", "importorskip") and wanting.search(ast.unparse(node)):
            yield ast.unparse(node)


def test_every_test_that_waits_for_a_gpu_is_marked() -> None:
    """By the mark alone: conftest.py is where it is skipped."""
    assert len(list(skips_for_want_of_a_gpu('pytest.skip("not run: no GPU")\npytest.mark.skipif(not has_gpu())'))) == 2
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)}
    found = {path: text for path, text in texts.items() if "skip" in text or "mark.gpu" in text}
    assert [skip for source in found.values() for skip in skips_for_want_of_a_gpu(source)] == []
    marked = {path for path, source in found.items() if re.search(r"mark\.gpu\b", source)} | {Path(__file__)}
    assert set(gpu_steps.gpu_tests()) == marked
    assert {path.name for path in marked} >= {"test_build_engine.py", "test_plan_engine.py", "test_dali.py"}


def test_tests_that_were_all_skipped_are_no_success(config: CheckConfig) -> None:
    config.folder.mkdir()
    counts = '<testsuite name="pytest" errors="0" failures="0" skipped="{}" tests="8">'
    (config.folder / "tests.xml").write_text(counts.format(1))
    assert STEPS["tests"].read(config) == {"tests": 8, "skipped": 1, "failures": 0, "errors": 0}
    (config.folder / "tests.xml").write_text(counts.format(8))
    with pytest.raises(StepError, match="every test was skipped: CUDA finds no GPU"):
        STEPS["tests"].read(config)


def test_where_the_sources_are_not_installed_their_steps_are_not_run(
    config: CheckConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_steps, "ROOT", tmp_path)
    for name in ("tests", "training", "ddp"):
        with pytest.raises(NotRunError, match="is not installed; `make gpu-check` runs it from the sources"):
            STEPS[name].commands(config)


def test_without_load_generators_the_line_says_what_to_install(
    config: CheckConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepError, match="no load generator: sudo apt-get install wrk nghttp2-client"):
        STEPS["served"].commands(config)


def test_a_plan_s_step_with_a_real_parser_and_builder(config: CheckConfig, tmp_path: Path) -> None:
    """TensorRT-RTX's, which need no GPU; what the step gives to TensorRT itself, but for `--check`."""
    for folder in (config.folder, config.onnx):
        folder.mkdir()
    small_graph(config.onnx / "model.fp16.onnx")
    step = STEPS["plan-fp16"]
    checked = replace(step, commands=lambda config: [[*words, "--check"] for words in step.commands(config)])
    figures = gpu_check.run_step(checked, config, tmp_path / "log")
    assert figures["builder"]["name"] == "TensorRT-RTX"
    assert json.loads((config.folder / "fp16/model.plan.json").read_text())["profile"]["max"][0] == 64
    assert f"; {figures['verified']} |" in gpu_check.table("x", {"plan-fp16": {"what": "", "figures": figures}})


def test_two_processes_train_together_and_say_their_rate(config: CheckConfig, tmp_path: Path) -> None:
    """The step of several GPUs, on a processor: gloo in place of nccl."""
    config.folder.mkdir()
    smallest = ["--batch", "2", "--rounds", "1", "--repeats", "1", "--width", "0.05"]
    step = replace(STEPS["ddp"], limit_s=240, commands=lambda config: [[*STEPS["ddp"].commands(config)[0], *smallest]])
    figures = gpu_check.run_step(step, config, tmp_path / "log")["ddp"]
    together, apart = figures["variants"]
    assert (figures["processes"], figures["not_run"]) == (2, {})
    assert together["variant"] == "bf16, channels_last"
    assert apart["variant"].endswith("each process by itself")
    rates = [each["images_per_second"]["median"] for each in (together, apart)]
    assert min(rates) > 0
    said = "; ".join(
        f"{row['variant']}: {rate:,.0f} images/s" for row, rate in zip((together, apart), rates, strict=True)
    )
    assert f"| {said} |" in gpu_check.table("x", {"ddp": {"what": "", "figures": {"ddp": figures}}})


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


def simulate_nvml(monkeypatch: pytest.MonkeyPatch, read_millijoules: Any) -> None:
    """CUDA's first GPU is the one at 0000:17:00.0; NVML knows no other."""
    handles = {"0000:17:00.0": 7}
    bindings = ModuleType("cuda.bindings")
    bindings.driver = Driver()  # type: ignore[attr-defined]
    bindings.nvml = SimpleNamespace(  # type: ignore[attr-defined]
        init_v2=lambda: None,
        device_get_handle_by_pci_bus_id_v2=handles.__getitem__,
        device_get_total_energy_consumption=read_millijoules,
    )
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)


def test_energy_is_that_of_the_gpu_that_cuda_calls_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_nvml(monkeypatch, {7: 2_500_000}.__getitem__)
    assert bound.energy_meter()() == 2500.0


def test_where_nvml_counts_no_energy_the_figures_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> int:
        raise RuntimeError("Not Supported")

    simulate_nvml(monkeypatch, refuse)
    bound.find_energy_meter.cache_clear()
    try:
        assert bound.find_energy_meter() == (None, "not counted: Not Supported")
    finally:
        bound.find_energy_meter.cache_clear()
    said = gpu_check.table("x", {"served": {"what": "", "figures": {"energy": "not counted: Not Supported"}}})
    assert "| not counted: Not Supported |" in said


@pytest.mark.parametrize("variant", ["gpu-python", "cpu"])
def test_served_rates_on_a_gpu_have_images_a_joule(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loads are made up, and so is the meter: a joule a reading."""
    readings = iter(float(number) for number in range(1000))
    monkeypatch.setattr(bound, "find_energy_meter", lambda: (lambda: next(readings), "made up"))
    monkeypatch.setattr(compare, "triton", Running)
    for name in ("http_load", "grpc_load"):
        monkeypatch.setattr(compare, name, lambda *words: Load(64, 100.0, 1.0, 2.0))
    config = BenchConfig(tmp_path, tmp_path, variant=variant, targets=(compare.OURS,), connections=(64,), repeats=1)
    found = compare.measure_served(config, lambda step: None)
    targets = {row["target"]: row.get("images_per_joule", 0.0) for row in found["summary"]}
    assert list(targets) == [compare.OURS, compare.OURS_GRPC]
    assert all((rate > 0) == (variant == "gpu-python") for rate in targets.values())
    assert found.get("energy") == ("made up" if variant == "gpu-python" else None)


class Running:
    """A server that nobody asks anything."""

    def __init__(self, *settings: object) -> None:
        pass

    def __enter__(self) -> Triton:
        return Triton(None, "127.0.0.1:1", "127.0.0.1:2")  # type: ignore[arg-type]

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.gpu
def test_on_a_gpu_energy_is_counted() -> None:
    read_joules = bound.energy_meter()
    before = read_joules()
    device = Device()
    device.synchronize()
    assert read_joules() >= before > 0
