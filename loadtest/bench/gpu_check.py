"""`alexnet-triton gpu-check`: everything that waits for a GPU, in steps that are measured one after another.

    alexnet-triton gpu-check                       all steps, 20 minutes at most: docs/gpu/NAME.json and NAME.md
    alexnet-triton gpu-check --only engine         one again; the others' figures stay

Each step is a command of this project in a process of its own, with a time limit. One that fails is reported, and the
next one runs. Exit code 0: every step was done, 1: one failed, 2: usage, 3: nothing was run, because the GPU, its
driver or TensorRT is missing. On a GPU: not run: no GPU.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alexnet_triton.common.command import FAILED, Parser, UserError, complain, finish
from alexnet_triton.common.files import write_json, write_text
from alexnet_triton.common.provenance import InstalledGpu, describe_run, gpu_fault, installed_gpus
from alexnet_triton.export import tensorrt
from alexnet_triton.export.errors import ExportError
from alexnet_triton.loadtest.bench.config import BenchError
from alexnet_triton.loadtest.bench.gpu_steps import STEPS, CheckConfig, NotRunError, Step, StepError, Words
from alexnet_triton.loadtest.bench.servers import triton

PROGRAM = "alexnet-triton gpu-check"
PACKAGES = ("tensorrt", "cuda-bindings", "nvidia-dali-cuda130", "nvidia-pytriton", "torch", "onnxruntime", "numpy")
VISIBLE = "CUDA_VISIBLE_DEVICES"


class NoGpuError(UserError):
    """The GPU, its driver or TensorRT is missing: no step can run."""

    exit_code = 3


def require_gpu() -> tuple[InstalledGpu, ...]:
    """The GPUs that are measured.

    Raises:
        NoGpuError: there is none, its driver is too old, or TensorRT is not installed.
    """
    gpus = installed_gpus()
    if fault := gpu_fault(gpus):
        raise NoGpuError(fault)
    try:
        tensorrt.load()
    except ExportError as error:
        raise NoGpuError(str(error)) from error
    return tuple(gpus)


def run_step(step: Step, config: CheckConfig, log: Path) -> Any:
    """Run a step's commands within its limit; returns its figures.

    Raises:
        StepError: a command failed, took too long, or left no figures.
        BenchError: the server does not start.
    """
    deadline = time.monotonic() + step.limit_s
    commands = step.commands(config)
    if not step.served:
        return _run_commands(commands, step, config, log, deadline)
    with triton(config.repository, config.folder, config.variant, step.limit_s) as server:
        filled = [[word.format(http=server.http, grpc=server.grpc) for word in words] for words in commands]
        return _run_commands(filled, step, config, log, deadline)


def _run_commands(commands: list[Words], step: Step, config: CheckConfig, log: Path, deadline: float) -> Any:
    for words in commands:
        environment = {**os.environ, VISIBLE: config.all_gpus} if step.all_gpus else dict(os.environ)
        _run_command(words, environment, log, max(0.1, deadline - time.monotonic()), step.limit_s)
    try:
        return step.read(config)
    except (OSError, ValueError, LookupError) as error:
        raise StepError(f"its figures cannot be read ({error}): see {log}") from error


def _run_command(words: Words, environment: dict[str, str], log: Path, left_s: float, limit_s: float) -> None:
    with log.open("ab") as output:
        options: dict[str, Any] = {"stdout": output, "stderr": output, "start_new_session": True}
        process = subprocess.Popen(words, env=environment, **options)
        try:
            code = process.wait(left_s)
        except subprocess.TimeoutExpired:
            raise StepError(f"not done in {limit_s:g} s: see {log}") from None
        finally:
            with suppress(ProcessLookupError):  # nothing that it started outlives it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise StepError(f"exit code {code}, {_last_line(log)}: see {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no output")


def main(words: Sequence[str]) -> int:
    """Check a GPU; returns the exit code."""
    parser = _build_parser()
    options = parser.parse_args(words)
    return finish(PROGRAM, lambda: _check(options))


def _build_parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    steps = "\n".join(f"  {name:10} {step.limit_s:4.0f} s  {step.what}" for name, step in STEPS.items())
    total = sum(step.limit_s for step in STEPS.values()) / 60
    parser = Parser(
        prog=PROGRAM,
        description=f"{__doc__}\nThe steps and their limits, {total:.0f} minutes together:\n\n{steps}",
        formatter_class=raw,
    )
    add = parser.add_argument
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--only", nargs="+", choices=STEPS, metavar="STEP", help="these steps; the others' figures stay"
    )
    chosen.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP", help="all but these")
    add("--variant", choices=("gpu-python", "gpu"), help="gpu in the official image (default: what this machine has)")
    add("--repository", type=Path, default=Path("artifacts/gpu/model_repository"), metavar="FOLDER")
    add("--onnx", type=Path, default=Path("artifacts/onnx"), metavar="FOLDER", help="the exported models (%(default)s)")
    add("--test", type=Path, default=Path("artifacts/test"), metavar="FOLDER", help="test images (%(default)s)")
    add("--images", type=Path, default=Path("artifacts/pictures"), metavar="FOLDER", help="to send (%(default)s)")
    add(
        "--folder",
        type=Path,
        default=Path("artifacts/gpu/check"),
        metavar="FOLDER",
        help="plans and logs (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="the figures (default: docs/gpu/NAME.json, of the GPU's name)")
    return parser


def _check(options: argparse.Namespace) -> int:
    gpus = require_gpu()
    config = CheckConfig(
        variant=options.variant or _default_variant(),
        repository=options.repository.absolute(),
        folder=options.folder.absolute(),
        onnx=options.onnx.absolute(),
        test=options.test.absolute(),
        images=options.images.absolute(),
        gpus=gpus,
        all_gpus=os.environ.get(VISIBLE, ",".join(map(str, range(len(gpus))))),
    )
    config.folder.mkdir(parents=True, exist_ok=True)
    others = f"; the first is measured, and training uses all {len(gpus)}" if len(gpus) > 1 else ""
    print(f"{', '.join(gpu.name for gpu in gpus)}, driver {gpus[0].driver}{others}", flush=True)
    file = options.json or Path("docs/gpu") / f"{_slug(gpus[0].name)}.json"
    names = options.only or [name for name in STEPS if name not in options.skip]
    with _visible(config.all_gpus.split(",")[0]):  # for the servers too
        failed = [name for name in names if not _report_step(name, config, file)]
    print(f"{file}: {len(names) - len(failed)} of {len(names)} steps done")
    return FAILED if failed else 0


@contextmanager
def _visible(gpus: str) -> Iterator[None]:
    """Have programs that are started meanwhile see these GPUs alone."""
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = gpus
    try:
        yield
    finally:
        del os.environ[VISIBLE]
        if before is not None:
            os.environ[VISIBLE] = before


def _default_variant() -> str:
    return "gpu" if Path("/opt/tritonserver/bin/tritonserver").is_file() else "gpu-python"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _report_step(name: str, config: CheckConfig, file: Path) -> bool:
    """Run a step and write what came of it, beside the others'; returns whether it was done."""
    step, log, start = STEPS[name], config.folder / f"{name}.log", time.monotonic()
    log.unlink(missing_ok=True)
    try:
        found: dict[str, Any] = {"state": "done", "figures": run_step(step, config, log)}
    except NotRunError as error:
        found = {"state": str(error)}
    except (StepError, BenchError) as error:
        found = {"state": f"failed: {error}"}
        complain(PROGRAM, f"{name}: {error}")
    seconds = round(time.monotonic() - start, 1)
    _write(file, name, {"what": step.what, "seconds": seconds, **found})
    print(f"{name:10} {seconds:6.1f} s  {found['state']}", flush=True)
    return not found["state"].startswith("failed")


def _write(file: Path, name: str, result: dict[str, Any]) -> None:
    """Put a step's result into the file, and the table of all beside it."""
    steps = json.loads(file.read_text())["steps"] if file.is_file() else {}
    steps = {each: (result if each == name else steps[each]) for each in STEPS if each == name or each in steps}
    write_json(file, {**describe_run(PACKAGES), "steps": steps})
    write_text(file.with_suffix(".md"), table(file.stem, steps))


def table(name: str, steps: dict[str, Any]) -> str:
    """The results of the steps as a table in Markdown: what can be said in a few words."""
    rows = [f"| {step} | {each['what']} | {_in_short(each)} |" for step, each in steps.items()]
    return "\n".join([f"# {name}", "", "| step | what | result |", "| --- | --- | --- |", *rows, ""])


def _in_short(result: dict[str, Any]) -> str:
    figures = result.get("figures") or {}
    if "summary" in figures:
        best = {row["target"]: row["images_per_s"] for row in figures["summary"]}
        ratios = [f"{value:.2f} {name}" for name, value in figures.get("ratios", {}).items()]
        return "; ".join([*(f"{target}: {rate:,.0f} images/s" for target, rate in best.items()), *ratios])
    if "engine" in figures:
        return "; ".join(f"{plan}: {_fastest(rows)}" for plan, rows in figures["engine"].items())
    if "tests" in figures:
        return ", ".join(f"{count} {name}" for name, count in figures.items())
    return str(result["state"])


def _fastest(rows: list[dict[str, Any]]) -> str:
    best = max(rows, key=lambda row: row["images_per_s"])
    joules = f", {best['images_per_joule']:.0f} images/J" if "images_per_joule" in best else ""
    return f"{best['images_per_s']:,.0f} images/s at batch {best['batch']}{joules}"
