"""A network in any file that this project makes, ready to run in each runtime that takes it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import onnx_file
from export.cuda import find_gpu
from export.errors import ModelError
from export.runners import onnx_runtime, openvino
from export.verify import Candidate

NO_GPU = "not run: no GPU"


@dataclass(frozen=True)
class Opened:
    """A file, the ways to run it, and what its images and classes are, where the file says so."""

    candidates: tuple[Candidate, ...]
    size: int | None
    classes: tuple[str, ...]
    note: str = ""  # why there is no candidate


def open_network(path: Path, *, bf16: bool = False) -> Opened:
    """A checkpoint, an ONNX model, or a TensorRT plan, by the suffix of its name.

    With `bf16` OpenVINO runs an FP32 model in that precision too.

    Raises:
        ExportError: it is damaged, or has another suffix.
    """
    if path.suffix == ".onnx":
        return _open_onnx(path, bf16)
    if path.suffix == ".pt":
        return _open_checkpoint(path)
    if path.suffix == ".plan":
        return _open_plan(path)
    raise ModelError(f"{path}: give a checkpoint (.pt), an ONNX model (.onnx) or a TensorRT plan (.plan)")


def _open_checkpoint(path: Path) -> Opened:
    from export.to_onnx import open_checkpoint, pytorch_runner

    source, _ = open_checkpoint(path)
    candidate = Candidate("fp32", "PyTorch", path, pytorch_runner(source))
    return Opened((candidate,), source.network.input_size, tuple(source.classes))


def _open_onnx(path: Path, bf16: bool) -> Opened:
    model = onnx_file.read(path)
    onnx_file.check_signature(model, path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    precision = onnx_file.precision(model)
    runs = [Candidate(precision, "ONNX Runtime", path, onnx_runtime(path))]
    if precision != "fp16":  # on a processor OpenVINO would compute it in FP32
        runs.append(Candidate(precision, "OpenVINO", path, openvino(path, "f32")))
    if precision == "fp32" and bf16:
        runs.append(Candidate("bf16", "OpenVINO", path, openvino(path, "bf16")))
    size = onnx_file.dims(onnx_file.image_input(model, path))[1]
    return Opened(tuple(runs), size, tuple(json.loads(properties.get("classes", "[]"))))


def _open_plan(path: Path) -> Opened:
    sidecar = read_sidecar(path)
    if find_gpu() is None:
        return Opened((), None, (), NO_GPU)
    from export.tensorrt_runner import tensorrt

    runner = tensorrt(path, host_code=bool(sidecar["config"]["version_compatible"]))
    return Opened((Candidate("plan", "TensorRT", path, runner),), None, ())


def read_sidecar(plan: Path) -> dict[str, Any]:
    """What `export.build_engine` wrote beside a plan.

    Raises:
        ModelError: there is none.
    """
    path = plan.with_name(f"{plan.name}.json")
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{plan}: without its {path.name}; build it: python -m export.build_engine") from error
    return sidecar


def plan_report(plan: Path) -> dict[str, Any] | str:
    """Of the plan at `plan`, what its sidecar says of builder, GPU and verification; else why there is nothing."""
    if not plan.is_file():
        return NO_GPU if find_gpu() is None else "not run: no plan; build it with python -m export.build_engine"
    sidecar = read_sidecar(plan)
    return {"file": plan.name, **{key: sidecar[key] for key in ("purpose", "builder", "gpu", "verified")}}


def shared(opened: list[Opened]) -> Iterator[Any]:
    """The size and the classes that the opened files agree on.

    Raises:
        ModelError: they differ, or none of them says so.
    """
    for what, values in (
        ("input size", [each.size for each in opened]),
        ("classes", [each.classes for each in opened]),
    ):
        known = {value for value in values if value}
        if len(known) != 1:
            said = "say different things of" if known else "do not say"
            raise ModelError(f"the candidate and the reference {said} their {what}; compare files of one network")
        yield known.pop()
