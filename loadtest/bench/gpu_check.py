"""`alexnet-triton gpu-check`: everything that waits for a GPU, in steps that are measured one after another.

    alexnet-triton gpu-check                       all steps, 20 minutes at most: docs/gpu/NAME.json and NAME.md
                                                   (in the official image NAME-image.json: its TensorRT backend)
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alexnet_triton.common.command import FAILED, Parser, UserError, complain, finish
from alexnet_triton.common.files import write_json, write_text
from alexnet_triton.common.provenance import InstalledGpu, describe_run, gpu_fault, installed_gpus
from alexnet_triton.export import tensorrt
from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.verify import describe_check
from alexnet_triton.loadtest.bench.config import BenchError
from alexnet_triton.loadtest.bench.gpu_steps import (
    LATENCY,
    STEPS,
    CheckConfig,
    NotRunError,
    Step,
    StepError,
    Words,
)
from alexnet_triton.loadtest.bench.servers import triton

PROGRAM = "alexnet-triton gpu-check"
PACKAGES = ("tensorrt", "cuda-bindings", "nvidia-dali-cuda130", "nvidia-pytriton", "torch", "onnxruntime", "numpy")
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
START, END = "<!-- gpu figures -->", "<!-- end of gpu figures -->"
IN_README = ("engine", "served", "tensors")


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
        _run_command(words, environment, log, max(0.1, deadline - time.monotonic()), step)
    try:
        return step.read(config)
    except (OSError, ValueError, LookupError) as error:
        raise StepError(f"its figures cannot be read ({error}): see {log}") from error


def _run_command(words: Words, environment: dict[str, str], log: Path, left_s: float, step: Step) -> None:
    with log.open("ab") as output, _signals_wait() as hear:
        options: dict[str, Any] = {"stdout": output, "stderr": output, "start_new_session": True}
        process = subprocess.Popen(words, env=environment, **options)
        try:
            hear()
            code = process.wait(left_s)
        except subprocess.TimeoutExpired:
            raise StepError(f"not done in {step.limit_s:g} s: see {log}") from None
        finally:
            with suppress(ProcessLookupError):  # nothing that it started outlives it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code not in step.codes:
        raise StepError(f"exit code {code}, {_last_line(log)}: see {log}")


@contextmanager
def _signals_wait() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM wait until the block calls what it is given: a process that starts is known by then."""
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number)) for each in (signal.SIGINT, signal.SIGTERM)
    }

    def hear() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        while came:
            signal.raise_signal(came.pop())

    try:
        yield hear
    finally:
        hear()


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
    add("--readme", type=Path, metavar="FILE", help=f"put the table of all GPUs between {START} and {END}")
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
    file = options.json or Path("docs/gpu") / _file_name(gpus[0].name, config.variant)
    names = options.only or [name for name in STEPS if name not in options.skip]
    with _interruptible(), _visible(config.all_gpus.split(",")[0]):  # for the servers too
        failed = [name for name in names if not _report_step(name, config, file)]
    if options.readme:
        put_into(options.readme, file.parent)
    print(f"{file}: {len(names) - len(failed)} of {len(names)} steps done")
    return FAILED if failed else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the step that runs, with all that it started, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _visible(gpus: str) -> Iterator[None]:
    """Have programs that are started meanwhile see these GPUs alone."""
    before = {name: os.environ.get(name) for name in (VISIBLE, ORDER)}
    os.environ |= {VISIBLE: gpus, ORDER: "PCI_BUS_ID"}  # CUDA's own order is by speed, nvidia-smi's by place
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _default_variant() -> str:
    return "gpu" if Path("/opt/tritonserver/bin/tritonserver").is_file() else "gpu-python"


def _file_name(gpu: str, variant: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{slug}-image.json" if variant == "gpu" else f"{slug}.json"


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


def put_into(readme: Path, folder: Path) -> None:
    """Replace what is between the marks by the rates of every GPU that `folder` has figures of.

    Raises:
        BenchError: the marks are missing.
    """
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise BenchError(f"{readme}: no {START} and {END} in it; put them where the table belongs")
    rows = [row for file in sorted(folder.glob("*.json")) for row in _readme_rows(file, readme.parent)]
    text = "\n".join(["", "", "| GPU | what | result |", "| --- | --- | --- |", *rows, "", ""]) if rows else ""
    write_text(readme, f"{before}{start}{text}{end}{after}")


def _readme_rows(file: Path, beside: Path) -> list[str]:
    link = f"[{file.stem}]({os.path.relpath(file.with_suffix('.md'), beside)})"
    steps = json.loads(file.read_text())["steps"]
    done = [steps[name] for name in IN_README if steps.get(name, {}).get("state") == "done"]
    return [f"| {link} | {each['what']} | {_in_short(each)} |" for each in done]


def _in_short(result: dict[str, Any]) -> str:
    figures = result.get("figures") or {}
    said = [say(figures[key]) for key, say in SAID.items() if key in figures]
    return "; ".join(filter(None, said)) or str(result["state"])


def _say_rates(summary: list[dict[str, Any]]) -> str:
    best: dict[str, dict[str, Any]] = {}
    for row in summary:
        best[row["target"]] = max(row, best.get(row["target"], row), key=lambda each: each["images_per_s"])
    return "; ".join(f"{target}: {_rate(row)}" for target, row in best.items())


def _rate(row: dict[str, Any]) -> str:
    joules = f", {row['images_per_joule']:.0f} images/J" if "images_per_joule" in row else ""
    return f"{row['images_per_s']:,.0f} images/s{joules}"


def _say_engine(engine: dict[str, Any]) -> str:
    if "plans" not in engine:  # that of a bench: its best setting
        return ""
    best = {plan: max(rows, key=lambda row: row["images_per_s"]) for plan, rows in engine["plans"].items()}
    return "; ".join(f"{plan}: {_rate(row)} at batch {row['batch']}" for plan, row in best.items())


def _say_accuracy(found: dict[str, Any]) -> str:
    tops = [f"{each['file']} in {each['runtime']}: top-1 {each['top1']:.4f}" for each in found["rows"]]
    return "; ".join(tops)


def _say_load(found: dict[str, Any]) -> str:
    limits = f" (the generator: {', '.join(found['limits'])})" if found["limits"] else ""
    return f"{found['answered_per_s']:,.0f}/s: p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms{limits}"


def _say_loadgen(found: dict[str, Any]) -> str:
    summary = found["summary"]
    rate = f", {summary['rate_per_s']:,.0f} images/s" if summary["rate_per_s"] else ""
    return f"{found['rules']['scenario']}: {'valid' if summary['valid'] else 'invalid'}{rate}"


def _say_steps(found: dict[str, Any]) -> str:
    return "; ".join(
        f"{row['variant']}: {row['images_per_second']['median']:,.0f} images/s" for row in found["variants"]
    )


# Key of a step's figures -> what they say in a few words.
SAID: dict[str, Callable[[Any], str]] = {
    "tests": lambda count: f"{count} tests",
    "skipped": lambda count: f"{count} skipped",
    "build_s": lambda seconds: f"built in {seconds:.0f} s",
    "verified": describe_check,
    "accuracy": _say_accuracy,
    "engine": _say_engine,
    "summary": _say_rates,
    "ratios": lambda ratios: "; ".join(f"{value:.2f} {name}" for name, value in ratios.items()),
    "energy": lambda words: words if words.startswith("not counted") else "",
    **dict.fromkeys(LATENCY, _say_load),
    **dict.fromkeys(("mlperf-Offline", "mlperf-Server"), _say_loadgen),
    **dict.fromkeys(("training", "ddp"), _say_steps),
}
