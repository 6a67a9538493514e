"""What becomes a version: files, labels and reference images, gathered and checked before anything is written."""

import json
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alexnet_triton.common.files import sha256
from alexnet_triton.common.provenance import describe_versions
from alexnet_triton.export import onnx_file
from alexnet_triton.export.adapt import LARGEST_BATCH
from alexnet_triton.export.errors import AccuracyError, ModelError, PublishError
from alexnet_triton.export.reference import choose, find_candidates
from alexnet_triton.export.report import TOOLS
from alexnet_triton.export.repository import Network, Publication

# The most top-1 that a precision may lose against fp32, in points.
ALLOWED_LOSS = {"fp32": 0.0, "fp16": 0.2, "bf16": 0.2, "int8": 0.5}
REPORT, PLAN = "report.json", "model.plan"
VERIFY_AGAIN = "verify again: alexnet-triton export"
FILES = {"fp32": "model.onnx", "bf16": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
OTHER_PRECISIONS = ("model.fp16.onnx", "model.int8.onnx")


def prepare(path: Path, images: Path | None, name: str = "alexnet", force: bool = False) -> Publication:
    """What becomes a version: the model at `path`, and the files beside it that `report.json` there has verified.

    The reference images are some of those in the <class>/ folders of `images`, and made ones.

    Raises:
        ExportError: the model or the images cannot be used, or a precision loses too much.
    """
    properties, labels, network = describe(path, name)
    report = read_report(path)
    forced = check_losses(report, force) if report else []
    others = {file: path.with_name(file) for file in OTHER_PRECISIONS if report and file in report["sha256"]}
    artefacts = {"model.onnx": path, **others}
    artefacts |= find_plan(path, {sha256(source) for source in artefacts.values()})
    candidates = find_candidates(images, labels, network.size)
    files = {precision: artefacts.get(FILES[precision], path) for precision in _accuracies(report)}
    references = choose(path, candidates, labels, network, files)
    manifest: dict[str, Any] = {
        "published": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": properties.get("data", ""),
        "checkpoint_sha256": properties.get("checkpoint_sha256", ""),
        "precisions": _accuracies(report),
        "forced": forced,
        "sha256": {file: sha256(source) for file, source in artefacts.items()},
        "reference_images": {"times_the_tolerance": references.notices},
        "tools": describe_versions(TOOLS),
    }
    return Publication(network, labels, artefacts, references.answers, manifest)


def describe(path: Path, name: str) -> tuple[dict[str, str], tuple[str, ...], Network]:
    """Metadata, labels and network of a model in the project's signature.

    Raises:
        ModelError: it is damaged, has another signature, or carries no labels.
    """
    model = onnx_file.read(path)
    batch, size = onnx_file.check_signature(model, path)
    labels = onnx_file.classes(model)
    if not labels:
        raise ModelError(f"{path}: carries no labels; publish it with --onnx {path} --labels FILE")
    return onnx_file.metadata(model), labels, Network(name, len(labels), size, batch or LARGEST_BATCH)


def read_report(model: Path) -> dict[str, Any] | None:
    """The verification report beside a model, or None where there is none.

    Raises:
        PublishError: it is about other files than those beside it.
    """
    path = model.with_name(REPORT)
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
        files: dict[str, str] = report["sha256"]
    except (ValueError, KeyError) as error:
        raise PublishError(f"{path}: damaged ({error}); {VERIFY_AGAIN}") from error
    for name, digest in files.items():
        file = model.with_name(name)
        if not file.is_file() or sha256(file) != digest:
            raise PublishError(f"{file}: not the file that {path} is about; {VERIFY_AGAIN}")
    return report


def check_losses(report: dict[str, Any], force: bool) -> list[str]:
    """The precisions that lose too much; without `force` there are none.

    Raises:
        AccuracyError: a precision loses more than `ALLOWED_LOSS`.
    """
    top1 = {row["precision"]: row["top1"] for row in report["rows"]}
    losses = {precision: round(100 * (top1["fp32"] - value), 3) for precision, value in top1.items()}
    failing = {precision: loss for precision, loss in losses.items() if loss > ALLOWED_LOSS[precision]}
    if failing and not force:
        text = "{} loses {:.2f} points of top-1, more than the {} allowed"
        named = ", ".join(text.format(name, loss, ALLOWED_LOSS[name]) for name, loss in failing.items())
        raise AccuracyError(f"not published: {named}; calibrate better, or publish all the same with --force")
    return sorted(failing)


def find_plan(model: Path, published: Collection[str]) -> dict[str, Path]:
    """The TensorRT plan beside a model, if `build-engine` built and verified one for Triton.

    Args:
        published: SHA-256 of the ONNX files that are published; the plan has to be built from one of them.

    Raises:
        PublishError: the plan there is not for Triton, not the one that its sidecar describes, or an older model's.
    """
    path = model.with_name(PLAN)
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.with_name(f"{path.name}.json").read_text())
        fits = sidecar["purpose"] == "for Triton" and sidecar["plan"]["sha256"] == sha256(path)
        source, digest = sidecar["onnx"]["file"], sidecar["onnx"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    remedy = "build it with alexnet-triton build-engine, or remove it"
    if not fits:
        raise PublishError(f"{path}: not a plan that was built for Triton; {remedy}")
    if digest not in published:
        raise PublishError(f"{path}: built from another {source} than the one that is published; {remedy}")
    return {PLAN: path}


def _accuracies(report: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Top-1 and top-5 of each precision that may be served; without a report that is fp32 alone, unmeasured."""
    if report is None:
        return {"fp32": {}}
    return {row["precision"]: {"top1": row["top1"], "top5": row["top5"]} for row in report["rows"]}
