"""ONNX to a TensorRT plan, built on the GPU that serves it.

    python -m alexnet_triton.export.build_engine artifacts/onnx/model.fp16.onnx artifacts/onnx/model.plan
    python -m alexnet_triton.export.build_engine --check MODEL.onnx OUTPUT.plan     without a GPU

Beside OUTPUT.plan lie OUTPUT.plan.json, which says what it is, OUTPUT.plan.layers.json of the engine
inspector, and OUTPUT.plan.timing_cache, which makes the next build quick. A plan only loads in the
TensorRT version that built it, unless it is built --version-compatible: build it in the
tensorrt:TAG-py3 image that belongs to the server's tritonserver:TAG-py3.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from alexnet_triton.common.files import sha256
from alexnet_triton.export import onnx_file, tensorrt
from alexnet_triton.export.command import finish
from alexnet_triton.export.errors import AccuracyError, ExportError
from alexnet_triton.export.images import find_images
from alexnet_triton.export.numerics import check_batches, onnx_runtime
from alexnet_triton.export.tensorrt import Built, Device, EngineConfig, Gpu, engine_runner, find_gpu

if __name__ == "__main__":
    from alexnet_triton.export.command import stay_quiet_while_loading

    stay_quiet_while_loading()


NO_GPU = "not run: no GPU"
IS_CHECK = "not run: the plan is a check"
NOT_FOR_TRITON = "a check, built by TensorRT-RTX: not for Triton"
# TF32, FP16 and INT8 kernels round otherwise than ONNX Runtime's; a broken plan differs by tenths.
TOLERANCE = 2e-2
VERIFIED_IMAGES = 256
HARDWARE = ("none", "ampere_plus", "same_compute_capability")


def build_engine(
    model: Path, output: Path, config: EngineConfig, *, check: bool = False, images: Path | None = None
) -> dict[str, Any]:
    """Build `output` and the files beside it, and say what it is, as its sidecar file does.

    Args:
        check: build with TensorRT-RTX, which needs no GPU, to see that the graph can be built.
        images: <class>/ folders to compare the plan's answers on; else random pixels are used.

    Raises:
        ModelError: the model cannot be used.
        AccuracyError: the plan answers otherwise than ONNX Runtime; nothing is written.
        ExportError: there is no GPU, or no TensorRT, or the files cannot be written.
    """
    gpu = find_gpu()
    if gpu is None and not check:
        raise ExportError("no GPU: build the plan on the machine that serves it, or try the graph here with --check")
    proto = onnx_file.read(model)
    onnx_file.check_signature(proto, model)
    trt = tensorrt.load(rtx=check)
    start = time.perf_counter()
    timing_cache = _beside(output, "check_timing_cache" if check else "timing_cache")
    kept = timing_cache.read_bytes() if timing_cache.is_file() else None
    built = tensorrt.build(trt, model, config, kept)
    elapsed_s = time.perf_counter() - start
    verified, layers = _try_out(trt, built, proto, model, config, images) if not check else (_reason(gpu), None)
    sidecar = {
        "purpose": NOT_FOR_TRITON if check else "for Triton",
        "builder": {"name": tensorrt.NAMES[trt.__name__], "version": trt.__version__},
        "gpu": asdict(gpu) if gpu else None,
        "plan": {"bytes": len(built.plan), "sha256": hashlib.sha256(built.plan).hexdigest()},
        "onnx": {"file": model.name, "sha256": sha256(model)},
        **built.signature,
        "config": asdict(config),
        "timing_cache": built.timing_cache_state,
        "build_s": round(elapsed_s, 2),
        "layers": _beside(output, "layers.json").name if layers else _reason(gpu),
        "verified": verified,
    }
    _write(output, built.plan, sidecar, layers, {timing_cache: built.timing_cache})
    return sidecar


def _reason(gpu: Gpu | None) -> str:
    return NO_GPU if gpu is None else IS_CHECK


def _beside(plan: Path, suffix: str) -> Path:
    return plan.with_name(f"{plan.name}.{suffix}")


def _try_out(
    trt: Any, built: Built, proto: onnx.ModelProto, model: Path, config: EngineConfig, images: Path | None
) -> tuple[dict[str, Any], str]:
    """Load the plan on the GPU, compare its answers with ONNX Runtime's on the same graph; also its layers."""
    device = Device()
    engine = tensorrt.deserialize(trt, built.plan, host_code=config.version_compatible)
    found = tensorrt.signature(trt, engine)
    if _essentials(found) != _essentials(built.signature):
        raise AccuracyError(f"{model}: the plan has {found} where the graph has {built.signature}; do not serve it")
    pixels = _pixels(proto, images)
    differences = check_batches(engine_runner(engine, device), onnx_runtime(model), pixels, TOLERANCE)
    verified = {"reference": "ONNX Runtime", "images": len(pixels), "tolerance": TOLERANCE}
    return {**verified, "largest_difference": differences}, tensorrt.layers(trt, engine)


def _essentials(signature: dict[str, Any]) -> tuple[Any, ...]:
    tensors = [(tensor["name"], tensor["dtype"]) for tensor in (*signature["inputs"], *signature["outputs"])]
    return tensors, signature["profile"]


def _pixels(proto: onnx.ModelProto, images: Path | None) -> np.ndarray:
    size = onnx_file.dims(onnx_file.image_input(proto, "the model"))[1] or 0
    if images is None:
        return np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    found = find_images(images, json.loads(properties.get("classes", "[]")), VERIFIED_IMAGES)
    return found.pixels(0, len(found), size)


def _write(output: Path, plan: bytes, sidecar: dict[str, Any], layers: str | None, more: dict[Path, bytes]) -> None:
    files = {output: plan, _beside(output, "json"): (json.dumps(sidecar, indent=2) + "\n").encode(), **more}
    if layers:
        files[_beside(output, "layers.json")] = (json.dumps(json.loads(layers), indent=2) + "\n").encode()
    onnx_file.write_together(files)
    if not layers:
        _beside(output, "layers.json").unlink(missing_ok=True)


def summary(output: Path, sidecar: dict[str, Any]) -> str:
    """A sidecar's values in a few lines for people."""
    (images,), (probabilities,) = sidecar["inputs"], sidecar["outputs"]
    batches = "/".join(str(sidecar["profile"][key][0]) for key in ("min", "opt", "max"))
    builder, verified = sidecar["builder"], sidecar["verified"]
    if not isinstance(verified, str):
        worst = max(verified["largest_difference"].values())
        verified = f"within {worst:.1e} of {verified['reference']} on {verified['images']} images"
    lines = [
        f"{output}: {sidecar['purpose']}, {sidecar['plan']['bytes'] / 1e6:.1f} MB",
        f"{builder['name']} {builder['version']}, {sidecar['build_s']} s, timing cache {sidecar['timing_cache']}",
        f"{images['name']} {images['dtype']} {images['shape']}, batch min/opt/max {batches} -> "
        f"{probabilities['name']} {probabilities['dtype']} {probabilities['shape']}",
        f"answers compared on the GPU: {verified}",
    ]
    if sidecar["config"]["version_compatible"]:
        lines.append("start Triton with --backend-config=tensorrt,version-compatible=true")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.export.build_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = EngineConfig()
    parser.add_argument("onnx", type=Path)
    parser.add_argument("plan", type=Path, help="file to write")
    parser.add_argument("--check", action="store_true", help="build with TensorRT-RTX, without a GPU; not for Triton")
    parser.add_argument("--opt", type=int, help="batch size to choose kernels for (default: the largest)")
    parser.add_argument("--max", type=int, default=default.max_batch, help="largest batch (default %(default)s)")
    parser.add_argument("--builder-level", type=int, choices=range(6), default=default.builder_level)
    parser.add_argument("--workspace", type=int, default=default.workspace_mib, metavar="MIB")
    parser.add_argument("--version-compatible", action="store_true", help="loads in later TensorRT versions too")
    parser.add_argument("--hardware-compatible", choices=HARDWARE[1:], default=HARDWARE[0], help="on other GPUs too")
    parser.add_argument("--images", type=Path, help="<class>/ folders to compare answers on (default: random pixels)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return finish("build_engine", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    config = EngineConfig(
        options.opt if options.opt is not None else options.max,
        options.max,
        options.builder_level,
        options.workspace,
        options.version_compatible,
        options.hardware_compatible,
    )
    sidecar = build_engine(options.onnx, options.plan, config, check=options.check, images=options.images)
    print(summary(options.plan, sidecar))


if __name__ == "__main__":
    sys.exit(main())
