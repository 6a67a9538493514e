"""The command `verify`: networks in any file that this project makes, compared with a reference on a whole test set.

    alexnet-triton verify artifacts/onnx/model.int8.onnx --against artifacts/checkpoint.pt --images artifacts/test

A checkpoint runs in PyTorch, an ONNX model in ONNX Runtime and OpenVINO, a TensorRT plan on a GPU. Prints the largest
probability difference, the fraction of the images with the same top-1, and top-1 and top-5 of each.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from alexnet_triton.common.command import Parser, finish, positive_float, positive_int
from alexnet_triton.common.files import write_json
from alexnet_triton.common.provenance import describe_command, describe_hardware, describe_versions
from alexnet_triton.export import onnx_file
from alexnet_triton.export.errors import AccuracyError, ModelError, NotDecidedError
from alexnet_triton.export.numerics import Candidate, Comparison, compare, find_images, onnx_runtime, openvino
from alexnet_triton.export.tensorrt import NO_GPU, plan_runner
from alexnet_triton.serving.plan_engine import has_gpu


@dataclass(frozen=True)
class OpenedNetwork:
    """A file, the ways to run it, and the size of its images and its classes, where the file has them."""

    candidates: tuple[Candidate, ...]
    size: int | None
    classes: tuple[str, ...]
    note: str = ""  # why there is no candidate


def open_network(path: Path, *, bf16: bool = False) -> OpenedNetwork:
    """A checkpoint, an ONNX model, or a TensorRT plan, by the suffix of its name.

    With `bf16` OpenVINO runs an FP32 model in that precision too.

    Raises:
        UserError: it is damaged, or has another suffix.
    """
    if path.suffix == ".onnx":
        return _open_onnx(path, bf16)
    if path.suffix == ".pt":
        return _open_checkpoint(path)
    if path.suffix == ".plan":
        return _open_plan(path)
    raise ModelError(f"{path}: give a checkpoint (.pt), an ONNX model (.onnx) or a TensorRT plan (.plan)")


def _open_checkpoint(path: Path) -> OpenedNetwork:
    from alexnet_triton.export.to_onnx import Classifier, open_checkpoint  # PyTorch takes seconds to load

    source, _ = open_checkpoint(path)
    candidate = Candidate("fp32", "PyTorch", path, Classifier.of(source).run)
    return OpenedNetwork((candidate,), source.network.input_size, tuple(source.classes))


def _open_onnx(path: Path, bf16: bool) -> OpenedNetwork:
    model = onnx_file.read(path)
    _, size = onnx_file.check_signature(model, path)
    precision = onnx_file.precision(model)
    runs = [Candidate(precision, "ONNX Runtime", path, onnx_runtime(path))]
    if precision != "fp16":  # on a processor OpenVINO would compute it in FP32
        runs.append(Candidate(precision, "OpenVINO", path, openvino(path, precision)))
    if precision == "fp32" and bf16:
        runs.append(Candidate("bf16", "OpenVINO", path, openvino(path, "bf16")))
    return OpenedNetwork(tuple(runs), size, onnx_file.classes(model))


def _open_plan(path: Path) -> OpenedNetwork:
    sidecar = read_sidecar(path)
    if not has_gpu():
        return OpenedNetwork((), None, (), NO_GPU)
    runner = plan_runner(path, host_code=bool(sidecar["config"]["version_compatible"]))
    return OpenedNetwork((Candidate("plan", "TensorRT", path, runner),), None, ())


def read_sidecar(plan: Path) -> dict[str, Any]:
    """The description of a plan that `build-engine` wrote beside it.

    Raises:
        ModelError: there is none.
    """
    path = plan.with_name(f"{plan.name}.json")
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{plan}: without its {path.name}; build it: alexnet-triton build-engine") from error
    return sidecar


def plan_report(plan: Path) -> dict[str, Any] | str:
    """Builder, GPU and verification of a plan, from its sidecar file; else why there is nothing."""
    if not plan.is_file():
        return "not run: no plan; build it with alexnet-triton build-engine" if has_gpu() else NO_GPU
    sidecar = read_sidecar(plan)
    return {"file": plan.name, **{key: sidecar[key] for key in ("purpose", "builder", "gpu", "verified")}}


def verify(
    candidates: Sequence[Path], against: Path, images: Path, limit: int | None = None, *, bf16: bool = False
) -> tuple[list[Comparison], dict[str, str]]:
    """Compare the files' answers to the images in <class>/ folders.

    Returns:
        The reference's row and one of every way to run the candidates; file -> why it was not run.

    Raises:
        UserError: a file or an image cannot be used.
    """
    reference, opened = open_network(against), {path: open_network(path, bf16=bf16) for path in candidates}
    if not reference.candidates:
        raise ModelError(f"{against}: {reference.note}; compare with a checkpoint or an ONNX model")
    size, classes = _shared_values([reference, *opened.values()])
    found = find_images(images, classes, limit)
    runs = [reference.candidates[0], *(run for each in opened.values() for run in each.candidates)]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{len(runs)} networks", total=len(found))
        rows = compare(runs, found, size, lambda done: progress.advance(task, done))
    return rows, {path.name: each.note for path, each in opened.items() if each.note}


def _shared_values(opened: Sequence[OpenedNetwork]) -> Iterator[Any]:
    """The input size and the classes that all files agree on.

    Raises:
        ModelError: they differ, or no file has them.
    """
    sizes, classes = [each.size for each in opened], [each.classes for each in opened]
    for what, values in (("input sizes", sizes), ("classes", classes)):
        known = {value for value in values if value}
        if len(known) != 1:
            fault = "have different" if known else "do not name their"
            raise ModelError(f"the candidate and the reference {fault} {what}; compare files of one network")
        yield known.pop()


def _check_differences(rows: Sequence[Comparison], tolerance: float) -> None:
    for row in rows[1:]:
        if not row.largest_difference <= tolerance:
            found = f"probabilities differ by {row.largest_difference:.1e} from those of {rows[0].file}"
            raise AccuracyError(f"{row.file} in {row.runtime}: {found}, more than {tolerance:g}")


def _check_top1(rows: Sequence[Comparison], points: float) -> None:
    """Images without labels have no top-1: then a different answer counts as a wrong one."""
    for row in rows[1:]:
        known = row.top1 is not None and rows[0].top1 is not None
        loss = 100 * ((rows[0].top1 or 0) - (row.top1 or 0) if known else 1 - row.agreement)
        if not round(loss, 3) <= points:
            raise AccuracyError(f"{row.file} in {row.runtime}: loses {loss:.2f} points of top-1, more than {points:g}")


def main(words: Sequence[str]) -> int:
    """Compare networks; returns the exit code, 4 where nothing could be compared."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="alexnet-triton verify", description=__doc__, formatter_class=raw)
    parser.add_argument("candidate", type=Path, nargs="+", help="checkpoint, ONNX model or TensorRT plan")
    parser.add_argument("--against", type=Path, required=True, metavar="REFERENCE", help="the same kinds of files")
    parser.add_argument("--images", type=Path, required=True, help="test images in <class>/ folders")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="compare on N of the images (default: all)")
    parser.add_argument("--bf16", action="store_true", help="run FP32 models in OpenVINO's BF16 too")
    parser.add_argument("--tolerance", type=positive_float, help="fail if probabilities differ by more")
    parser.add_argument(
        "--top1-loss", type=float, metavar="POINTS", help="fail if top-1 loses more than so many points"
    )
    parser.add_argument("--json", type=Path, help="write the same figures to this file")
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _run(options, [*parser.prog.split(), *words]))


def _run(options: argparse.Namespace, command: Sequence[str]) -> None:
    rows, not_run = verify(options.candidate, options.against, options.images, options.limit, bf16=options.bf16)
    found = build_report(rows, command, not_run=not_run)
    show_report(found)
    if options.json:
        write_json(options.json, found)
    if len(rows) == 1:
        raise NotDecidedError("not decided: " + "; ".join(f"{name} {reason}" for name, reason in not_run.items()))
    if options.tolerance is not None:
        _check_differences(rows, options.tolerance)
    if options.top1_loss is not None:
        _check_top1(rows, options.top1_loss)


# ---- the report


TOOLS = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
HEADINGS = (
    "precision",
    "runtime",
    "top-1",
    "top-5",
    "same top-1",
    "distance",
    "difference",
    "MB",
    "img/s, 1",
    "img/s, 32",
)


def build_report(rows: Sequence[Comparison], words: Sequence[str], **details: Any) -> dict[str, Any]:
    """The report as JSON values: rows, hardware, versions and the exact command, which is made of `words`."""
    return {
        "command": describe_command(words),
        "hardware": describe_hardware(),
        "versions": describe_versions(TOOLS),
        "rows": [asdict(row) for row in rows],
        **details,
    }


def show_report(report: dict[str, Any], file: Any = None) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{report['rows'][0]['images']:,} test images, {report['hardware']}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("precision", "runtime") else "right", no_wrap=True)
    for row in report["rows"]:
        rates = {int(batch): rate for batch, rate in row["images_per_second"].items()}
        table.add_row(
            *(row["precision"], row["runtime"], _fraction(row["top1"]), _fraction(row["top5"])),
            *(_fraction(row["agreement"]), _fraction(row["distance"])),
            *(f"{row['largest_difference']:.1e}", f"{row['megabytes']:.1f}"),
            *(f"{rates[batch]:.0f}" if batch in rates else "" for batch in (1, 32)),
        )
    stream = file or sys.stdout
    console = Console(file=stream, width=120 if not stream.isatty() else None)
    console.print(table)
    for name, reason in [*report.get("not_run", {}).items(), *report.get("left_out", {}).items()]:
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)
    if "tensorrt" in report:
        console.print(_describe_plan(report["tensorrt"]), markup=False, soft_wrap=True)


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _describe_plan(plan: dict[str, Any] | str) -> str:
    """A plan is compared with ONNX Runtime when it is built; its sidecar file has the outcome."""
    if isinstance(plan, str):
        return f"TensorRT plan: {plan}"
    builder = f"{plan['builder']['name']} {plan['builder']['version']}"
    return f"{plan['file']}, {builder}, {plan['purpose']}: {describe_check(plan['verified'])}"


def describe_check(verified: dict[str, Any] | str) -> str:
    """How near a plan's answers came to its reference's, or why it was not run."""
    if isinstance(verified, str):
        return verified
    worst = max(verified["largest_difference"].values())
    return f"within {worst:.1e} of {verified['reference']} on {verified['images']} images"
