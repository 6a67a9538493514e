"""Candidates against a reference on a whole test set.

    python -m alexnet_triton.export.numerics artifacts/onnx/model.int8.onnx --against artifacts/checkpoint.pt --images artifacts/test

A checkpoint runs in PyTorch, an ONNX model in ONNX Runtime and OpenVINO, a TensorRT plan on a GPU.
Prints the largest probability difference, the part of the images with the same top-1, and top-1 and top-5 of each.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from alexnet_triton.export import onnx_file, report
from alexnet_triton.export.command import finish
from alexnet_triton.export.errors import AccuracyError, ModelError
from alexnet_triton.export.images import find_images
from alexnet_triton.export.numerics import Candidate, Comparison, compare, onnx_runtime, openvino
from alexnet_triton.export.tensorrt import find_gpu

# WAS alexnet_triton.export.verify: A network in any file that this project makes, ready to run in each runtime that takes it.


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
    from alexnet_triton.export.to_onnx import open_checkpoint, pytorch_runner

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
    from alexnet_triton.export.tensorrt import plan_runner

    runner = plan_runner(path, host_code=bool(sidecar["config"]["version_compatible"]))
    return Opened((Candidate("plan", "TensorRT", path, runner),), None, ())


def read_sidecar(plan: Path) -> dict[str, Any]:
    """What `alexnet_triton.export.build_engine` wrote beside a plan.

    Raises:
        ModelError: there is none.
    """
    path = plan.with_name(f"{plan.name}.json")
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{plan}: without its {path.name}; build it: python -m alexnet_triton.export.build_engine"
        ) from error
    return sidecar


def plan_report(plan: Path) -> dict[str, Any] | str:
    """Of the plan at `plan`, what its sidecar says of builder, GPU and verification; else why there is nothing."""
    if not plan.is_file():
        return (
            NO_GPU
            if find_gpu() is None
            else "not run: no plan; build it with python -m alexnet_triton.export.build_engine"
        )
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


@dataclass(frozen=True)
class Verified:
    """The reference's row and one of every way to run the candidates; file -> why it was not run."""

    rows: list[Comparison]
    not_run: dict[str, str]


def verify(
    candidates: Sequence[Path], against: Path, images: Path, limit: int | None = None, *, bf16: bool = False
) -> Verified:
    """Compare the files' answers to the images in <class>/ folders.

    Raises:
        ExportError: a file or an image cannot be used.
    """
    reference, opened = open_network(against), {path: open_network(path, bf16=bf16) for path in candidates}
    if not reference.candidates:
        raise ModelError(f"{against}: {reference.note}; compare with a checkpoint or an ONNX model")
    size, classes = shared([reference, *opened.values()])
    found = find_images(images, classes, limit)
    runs = [reference.candidates[0], *(run for each in opened.values() for run in each.candidates)]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{len(runs)} networks", total=len(found))
        rows = compare(runs, found, size, lambda done: progress.advance(task, done))
    return Verified(rows, {path.name: each.note for path, each in opened.items() if each.note})


def check(rows: list[Comparison], tolerance: float) -> None:
    """Raises:
    AccuracyError: a candidate's probabilities differ by more than `tolerance` from the reference's.
    """
    for row in rows[1:]:
        if not row.largest_difference <= tolerance:
            raise AccuracyError(
                f"{row.file} in {row.runtime}: probabilities differ by {row.largest_difference:.1e} from those of "
                f"{rows[0].file}, more than {tolerance:g}"
            )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.export.numerics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("candidate", type=Path, nargs="+", help="checkpoint, ONNX model or TensorRT plan")
    parser.add_argument("--against", type=Path, required=True, metavar="REFERENCE", help="the same kinds of files")
    parser.add_argument("--images", type=Path, required=True, help="test images in <class>/ folders")
    parser.add_argument("--limit", type=int, help="compare on so many of them (default: all)")
    parser.add_argument("--bf16", action="store_true", help="run FP32 models in OpenVINO's BF16 too")
    parser.add_argument("--tolerance", type=float, help="fail where probabilities differ by more")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 compared; 1 a file cannot be used, or differs too much; 2 wrong command line; 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    return finish("verify", lambda: _run(options, ["alexnet_triton.export.numerics", *given]))


def _run(options: argparse.Namespace, command: list[str]) -> None:
    verified = verify(options.candidate, options.against, options.images, options.limit, bf16=options.bf16)
    found = report.build(verified.rows, command, not_run=verified.not_run)
    report.show(found)
    if options.json:
        report.write(found, options.json)
    if options.tolerance is not None:
        check(verified.rows, options.tolerance)
