"""The steps of `gpu-check`: what each runs, for how long at most, and where its figures are.

Every command is one of this project's. On a GPU: not run: no GPU.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_triton.common.command import UserError
from alexnet_triton.common.provenance import InstalledGpu
from alexnet_triton.loadtest.bench.config import BOUND, ROOT
from alexnet_triton.loadtest.bench.config import OURS as OUR_SERVER
from alexnet_triton.loadtest.bench.wrk import DEBIAN_PACKAGES

OURS = [sys.executable, "-m", "alexnet_triton"]
LARGEST_BATCH = 64  # of the plans that are timed
LOADS = (0.5, 0.8)  # of the rate that the server sustains
LATENCY = tuple(f"latency-{load:.0%}" for load in LOADS)
LEAST_RATE = 10.0  # images a second, where no step before has found one


class StepError(UserError):
    """A step failed, or took too long."""


class NotRunError(StepError):
    """This machine has not what the step is about."""


@dataclass(frozen=True)
class CheckConfig:
    """What is measured, and where the files are.

    Attributes:
        variant: `gpu-python` with the embedded Triton, `gpu` in the official image.
        folder: plans, logs and what the steps write.
        onnx: with model.onnx, model.fp16.onnx and model.int8.onnx, as `alexnet-triton export` leaves them.
    """

    variant: str
    repository: Path
    folder: Path
    onnx: Path
    test: Path
    images: Path
    gpus: tuple[InstalledGpu, ...]
    all_gpus: str  # as CUDA_VISIBLE_DEVICES names them

    def plan(self, precision: str) -> Path:
        return self.folder / precision / "model.plan"

    def built_plans(self) -> list[Path]:
        """Those that earlier steps have left.

        Raises:
            StepError: there is none.
        """
        found = [plan for plan in map(self.plan, ("fp16", "int8")) if plan.is_file()]
        if not found:
            raise StepError(f"no plan in {self.folder}: run the steps plan-fp16 and plan-int8 before it")
        return found

    def written(self, name: str) -> Path:
        """The file in which a step leaves its figures."""
        return self.folder / f"{name}.json"


Words = list[str]


@dataclass(frozen=True)
class Step:
    """A part of the check: commands, one after another, and the figures that they leave."""

    what: str
    limit_s: float
    commands: Callable[[CheckConfig], list[Words]]
    read: Callable[[CheckConfig], Any] = lambda config: None
    served: bool = False  # a server runs meanwhile; {http} and {grpc} in the commands are its addresses
    all_gpus: bool = False  # else it sees the first alone
    codes: tuple[int, ...] = (0,)  # with which a command has left its figures


def _source(name: str) -> Path:
    """A file or folder of the sources, which an installed wheel and the images have not."""
    if not (ROOT / name).exists():
        raise NotRunError(f"not run: {name} is not installed; `make gpu-check` runs it from the sources")
    return ROOT / name


def gpu_tests() -> list[Path]:
    """The files with tests that are marked `gpu`, of which each is left out where there is no GPU."""
    files = sorted(_source("tests").rglob("test_*.py"))
    return [path for path in files if re.search(r"^@pytest\.mark\.gpu$", path.read_text(), re.MULTILINE)]


def _tests(config: CheckConfig) -> list[Words]:
    report = f"--junitxml={config.folder / 'tests.xml'}"
    options = ["-n", "0", "-q", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-m", "gpu", report]
    options += ["-W", "default"]  # a warning of another driver or TensorRT is no failure
    return [[sys.executable, "-m", "pytest", *options, *map(str, gpu_tests())]]


def _read_tests(config: CheckConfig) -> dict[str, int]:
    text = (config.folder / "tests.xml").read_text()
    found = {name: int(re.findall(rf'{name}="(\d+)"', text)[0]) for name in ("tests", "skipped", "failures", "errors")}
    if found["skipped"] == found["tests"]:
        raise StepError("every test was skipped: CUDA finds no GPU, whatever nvidia-smi lists")
    return found


def _build(precision: str) -> Callable[[CheckConfig], list[Words]]:
    def commands(config: CheckConfig) -> list[Words]:
        model, plan = config.onnx / f"model.{precision}.onnx", config.plan(precision)
        plan.parent.mkdir(parents=True, exist_ok=True)
        images = ["--images", str(config.test)] if config.test.is_dir() else []
        return [[*OURS, "build-engine", str(model), str(plan), "--max", str(LARGEST_BATCH), *images]]

    return commands


def _read_plan(precision: str) -> Callable[[CheckConfig], Any]:
    return lambda config: _json(config.plan(precision).with_name("model.plan.json"), "builder", "build_s", "verified")


def _accuracy(config: CheckConfig) -> list[Words]:
    plans = map(str, config.built_plans())
    against = ["--against", str(config.onnx / "model.onnx"), "--images", str(config.test)]
    return [[*OURS, "verify", *plans, *against, "--top1-loss", "0.5", "--json", str(config.written("accuracy"))]]


def _engine(config: CheckConfig) -> list[Words]:
    plans = [str(plan.parent) for plan in config.built_plans()]
    program = [sys.executable, "-m", "alexnet_triton.loadtest.bench.bound"]
    return [[*program, *plans, "--json", str(config.written("engine"))]]


def _bench(stage: str, *options: str) -> Callable[[CheckConfig], list[Words]]:
    def commands(config: CheckConfig) -> list[Words]:
        if missing := [package for program, package in DEBIAN_PACKAGES.items() if not shutil.which(program)]:
            raise StepError(f"no load generator: sudo apt-get install {' '.join(missing)}")
        given = ["--repository", str(config.repository), "--variant", config.variant, "--pictures", str(config.images)]
        files = ["--folder", str(config.folder / "bench"), "--json", str(config.written("bench"))]
        return [[*OURS, "bench", stage, *given, *files, "--repeats", "2", "--seconds", "4", *options]]

    return commands


def _read_bench(stage: str) -> Callable[[CheckConfig], Any]:
    return lambda config: {
        key: value
        for key, value in json.loads(config.written("bench").read_text())["stages"][stage].items()
        if key in ("summary", "ratios", "engine", "energy")
    }


def sustained_rate(config: CheckConfig) -> float:
    """Images a second over HTTP, as the step `served` found them."""
    with suppress(OSError, ValueError, KeyError):
        rows = json.loads(config.written("bench").read_text())["stages"]["served"]["summary"]
        return max((row["images_per_s"] for row in rows if row["target"] == OUR_SERVER), default=LEAST_RATE)
    return LEAST_RATE


def _latency(config: CheckConfig) -> list[Words]:
    rates = {name: load * sustained_rate(config) for name, load in zip(LATENCY, LOADS, strict=True)}
    shared = ["--url", "http://{http}", "--images", str(config.images), "--duration", "15s", "--no-report"]
    return [
        [*OURS, "loadtest", "run", *shared, "--rate", f"{rate:.1f}", "--json", str(config.written(name))]
        + ["--output", str(config.folder / name)]
        for name, rate in rates.items()
    ]


def _read_latency(config: CheckConfig) -> dict[str, Any]:
    """What says how a load went, without its histograms."""
    return {name: _load_figures(config.written(name)) for name in LATENCY}


def _load_figures(path: Path) -> dict[str, Any]:
    measured = json.loads(path.read_text())["measured"]
    times = {key: value for key, value in measured["latency"].items() if key != "histogram"}
    return {"answered_per_s": measured["answered_per_s"], **times, "limits": measured["generator"]["limits"]}


def generated_rate(config: CheckConfig) -> float:
    """Images a second for LoadGen: what the server sustains, or less where one Python client could not send it."""
    rate = sustained_rate(config)
    with suppress(OSError, ValueError, KeyError):
        found = _load_figures(config.written(LATENCY[-1]))
        return min(rate, found["answered_per_s"]) if found["limits"] else rate
    return rate


def _mlperf(config: CheckConfig) -> list[Words]:
    rate = generated_rate(config)
    qps = {"Offline": 1.2 * rate, "Server": 0.8 * rate}
    for name in qps:
        config.written(f"mlperf-{name}").unlink(
            missing_ok=True
        )  # an invalid run's figures are figures, an old run's none
    shared = ["--url", "grpc://{grpc}", "--images", str(config.images), "--min-duration", "20s", "--no-report"]
    return [
        [*OURS, "loadtest", "mlperf", "--scenario", name, *shared, "--target-qps", f"{value:.1f}"]
        + ["--output", str(config.folder / f"mlperf-{name}"), "--json", str(config.written(f"mlperf-{name}"))]
        for name, value in qps.items()
    ]


def _training(config: CheckConfig) -> list[Words]:
    return [[sys.executable, str(_source("docs/step_speed.py")), "--json", str(config.written("training"))]]


def _ddp(config: CheckConfig) -> list[Words]:
    if len(config.gpus) < 2:
        raise NotRunError("not run: one GPU")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(len(config.gpus))]
    return [[*torchrun, str(_source("docs/step_speed.py")), "--json", str(config.written("ddp"))]]


def _json(path: Path, *keys: str) -> Any:
    found = json.loads(path.read_text())
    return {key: found[key] for key in keys} if keys else found


def _read_files(*names: str) -> Callable[[CheckConfig], Any]:
    return lambda config: {name: _json(config.written(name)) for name in names}


STEPS: dict[str, Step] = {
    "tests": Step("the tests that are skipped without a GPU", 140, _tests, _read_tests),
    "plan-fp16": Step("the FP16 plan, built and compared", 80, _build("fp16"), _read_plan("fp16")),
    "plan-int8": Step("the INT8 plan, built and compared", 80, _build("int8"), _read_plan("int8")),
    "accuracy": Step("top-1 of the plans on the whole test set", 90, _accuracy, _read_files("accuracy")),
    "engine": Step("the plans in process, batch 1 to 64", 60, _engine, _read_files("engine")),
    "served": Step(
        "JPEGs over HTTP and gRPC, and the bound",
        180,
        _bench("served", "--target", BOUND, "--target", OUR_SERVER, "--connections", "1", "64", "256"),
        _read_bench("served"),
    ),
    "tensors": Step("pixels over gRPC, and the engine alone", 130, _bench("tensors"), _read_bench("tensors")),
    "batching": Step("dynamic batching on and off", 130, _bench("batching", "--seconds", "3"), _read_bench("batching")),
    "latency": Step(
        "latency at 50 and 80 % of the served rate",
        80,
        _latency,
        _read_latency,
        served=True,
    ),
    "mlperf": Step(
        "LoadGen's Offline and Server",
        90,
        _mlperf,
        _read_files("mlperf-Offline", "mlperf-Server"),
        served=True,
        codes=(0, 1),  # 1: LoadGen calls the run invalid, and says why
    ),
    "training": Step("training steps in bf16 and fp16", 80, _training, _read_files("training")),
    "ddp": Step("training steps on all GPUs together", 60, _ddp, _read_files("ddp"), all_gpus=True),
}
