"""The command `build-engine`: ONNX to a TensorRT plan, built on the GPU that serves it.

    alexnet-triton build-engine artifacts/onnx/model.fp16.onnx artifacts/onnx/model.plan
    alexnet-triton build-engine --check MODEL.onnx OUTPUT.plan     without a GPU

Beside OUTPUT.plan it writes OUTPUT.plan.json, which describes the plan, OUTPUT.plan.layers.json of the engine
inspector, and OUTPUT.plan.timing_cache, which makes the next build quick. A plan only loads in the
TensorRT version that built it, unless it is built --version-compatible: build it in the
tensorrt:TAG-py3 image that belongs to the server's tritonserver:TAG-py3.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.common.command import Parser, finish, positive_int
from alexnet_triton.common.files import sha256, write_together
from alexnet_triton.common.provenance import gpu_fault, installed_gpus
from alexnet_triton.export import onnx_file, tensorrt
from alexnet_triton.export.errors import AccuracyError, ExportError
from alexnet_triton.export.numerics import check_batches, find_images, onnx_runtime
from alexnet_triton.export.tensorrt import NO_GPU, BuiltPlan, PlanConfig, engine_runner
from alexnet_triton.export.verify import describe_check
from alexnet_triton.serving.plan_engine import Device, deserialize, has_gpu

IS_CHECK = "not run: the plan is a check"
NOT_FOR_TRITON = "a check, built by TensorRT-RTX: not for Triton"
# TF32, FP16 and INT8 kernels round differently from ONNX Runtime's; a broken plan differs by tenths.
TOLERANCE = 2e-2
VERIFIED_IMAGES = 256


def build_engine(
    model: Path, output: Path, config: PlanConfig, *, check: bool = False, images: Path | None = None
) -> dict[str, Any]:
    """Build `output` and the files beside it; returns the content of its sidecar file.

    Args:
        check: build with TensorRT-RTX, which needs no GPU, to see that the graph can be built.
        images: <class>/ folders to compare the plan's answers on; else random pixels are used.

    Raises:
        ModelError: the model cannot be used.
        AccuracyError: the plan's answers differ from ONNX Runtime's; nothing is written.
        ExportError: there is no GPU, or no TensorRT.
        WriteError: the files cannot be written.
    """
    if not check:
        _check_gpu()
    proto = onnx_file.read(model)
    _, size = onnx_file.check_signature(proto, model)
    pixels = _pixels(None if check else images, onnx_file.classes(proto), size)
    trt = tensorrt.load(rtx=check)
    device = None if check else Device()
    start = time.perf_counter()
    timing_cache = _beside(output, "check_timing_cache" if check else "timing_cache")
    built = tensorrt.build(trt, model, config, timing_cache.read_bytes() if timing_cache.is_file() else None)
    build_s = time.perf_counter() - start
    not_run = IS_CHECK if has_gpu() else NO_GPU
    host_code = config.version_compatible
    verified, layers = _try_out(trt, built, device, model, pixels, host_code) if device else (not_run, None)
    sidecar = {
        "purpose": "for Triton" if device else NOT_FOR_TRITON,
        "builder": {"name": tensorrt.NAMES[trt.__name__], "version": trt.__version__},
        "gpu": asdict(device.describe()) if device else None,
        "plan": {"bytes": len(built.plan), "sha256": hashlib.sha256(built.plan).hexdigest()},
        "onnx": {"file": model.name, "sha256": sha256(model)},
        **built.signature,
        "config": asdict(config),
        "timing_cache": built.timing_cache_state,
        "build_s": round(build_s, 2),
        "layers": _beside(output, "layers.json").name if layers else not_run,
        "verified": verified,
    }
    _write(output, built.plan, sidecar, layers, {timing_cache: built.timing_cache})
    return sidecar


def _check_gpu() -> None:
    """Raises ExportError where there is no GPU, or where one is there that CUDA 13 does not run on."""
    gpus = installed_gpus()
    if gpus and (fault := gpu_fault(gpus)):
        raise ExportError(f"{fault}, or try the graph here with --check")
    if not has_gpu():
        raise ExportError("no GPU: build the plan on the machine that serves it, or try the graph here with --check")


def _beside(plan: Path, suffix: str) -> Path:
    return plan.with_name(f"{plan.name}.{suffix}")


def _try_out(
    trt: Any, built: BuiltPlan, device: Device, model: Path, pixels: np.ndarray, host_code: bool
) -> tuple[dict[str, Any], str]:
    """Load the plan on the GPU and compare its answers with ONNX Runtime's on the same graph; also its layers."""
    engine = deserialize(trt, built.plan, host_code=host_code)
    found = tensorrt.signature(trt, engine)
    if _essentials(found) != _essentials(built.signature):
        raise AccuracyError(f"{model}: the plan has {found}, but the graph has {built.signature}; do not serve it")
    differences = check_batches(engine_runner(engine, device), onnx_runtime(model), pixels, TOLERANCE)
    verified = {"reference": "ONNX Runtime", "images": len(pixels), "tolerance": TOLERANCE}
    return {**verified, "largest_difference": differences}, tensorrt.layers(trt, engine)


def _essentials(signature: dict[str, Any]) -> tuple[Any, ...]:
    tensors = [(tensor["name"], tensor["dtype"]) for tensor in (*signature["inputs"], *signature["outputs"])]
    return tensors, signature["profile"]


def _pixels(images: Path | None, classes: Sequence[str], size: int) -> np.ndarray:
    if images is None:
        return np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
    return find_images(images, classes, VERIFIED_IMAGES).pixels(size)


def _write(output: Path, plan: bytes, sidecar: dict[str, Any], layers: str | None, more: dict[Path, bytes]) -> None:
    files = {output: plan, _beside(output, "json"): _json(sidecar), **more}
    if layers:
        files[_beside(output, "layers.json")] = _json(json.loads(layers))
    write_together(files)
    if not layers:  # those of an earlier build
        _beside(output, "layers.json").unlink(missing_ok=True)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def summarize(output: Path, sidecar: dict[str, Any]) -> str:
    """A sidecar's values in a few lines for people."""
    (images,), (probabilities,), builder = sidecar["inputs"], sidecar["outputs"], sidecar["builder"]
    batches = "/".join(str(sidecar["profile"][key][0]) for key in ("min", "opt", "max"))
    lines = [
        f"{output}: {sidecar['purpose']}, {sidecar['plan']['bytes'] / 1e6:.1f} MB",
        f"{builder['name']} {builder['version']}, {sidecar['build_s']} s, timing cache {sidecar['timing_cache']}",
        f"{images['name']} {images['dtype']} {images['shape']}, batch min/opt/max {batches} -> "
        f"{probabilities['name']} {probabilities['dtype']} {probabilities['shape']}",
        f"answers compared on the GPU: {describe_check(sidecar['verified'])}",
    ]
    if sidecar["config"]["version_compatible"]:
        lines.append("start Triton with --backend-config=tensorrt,version-compatible=true")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Build a plan; returns the exit code."""
    raw, default = argparse.RawDescriptionHelpFormatter, PlanConfig()
    parser = Parser(prog="alexnet-triton build-engine", description=__doc__, formatter_class=raw)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("plan", type=Path, help="file to write")
    parser.add_argument("--check", action="store_true", help="build with TensorRT-RTX, without a GPU; not for Triton")
    parser.add_argument("--opt", type=positive_int, help="batch size to choose kernels for (default: the largest)")
    parser.add_argument("--max", type=positive_int, default=default.max_batch, help="largest batch (default 32)")
    parser.add_argument("--builder-level", type=int, choices=range(6), default=default.builder_level)
    parser.add_argument("--workspace", type=positive_int, default=default.workspace_mib, metavar="MIB")
    parser.add_argument("--version-compatible", action="store_true", help="loads in later TensorRT versions too")
    parser.add_argument("--images", type=Path, help="<class>/ folders to compare answers on (default: random pixels)")
    options = parser.parse_args(words)
    if options.opt and options.opt > options.max:
        parser.error(f"--opt {options.opt} is larger than --max {options.max}")
    return finish(parser.prog, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    batches, compatible = (options.opt or options.max, options.max), options.version_compatible
    config = PlanConfig(*batches, options.builder_level, options.workspace, compatible)
    sidecar = build_engine(options.onnx, options.plan, config, check=options.check, images=options.images)
    print(summarize(options.plan, sidecar))
