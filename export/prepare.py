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
from alexnet_triton.export.errors import AccuracyError, ModelError, NotDecidedError, PublishError
from alexnet_triton.export.reference import choose, find_candidates
from alexnet_triton.export.report import TOOLS
from alexnet_triton.export.repository import Network, Publication

# The most top-1 that a precision may lose against the first row, in points. FP32 in another runtime may decide a tie
# otherwise.
ALLOWED_LOSS = {"fp32": 0.05, "fp16": 0.2, "bf16": 0.2, "int8": 0.5}
# The least part of the images that have the same top-1 in both. Rounding changes it on near ties only: measured are
# 0.9998 in FP16, 0.997 in BF16 and 0.989 in INT8, less with more classes. A network that answers something else can be
# right as often, but it agrees no more often than chance.
LEAST_AGREEMENT = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.98, "int8": 0.9}
DECISIVE_IMAGES = 1000  # or the whole test set: on a few images, any loss may be chance
REPORT, PLAN = "report.json", "model.plan"
VERIFY_AGAIN = "verify again: alexnet-triton export"
FILES = {"fp32": "model.onnx", "bf16": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
OTHER_PRECISIONS = ("model.fp16.onnx", "model.int8.onnx")


def prepare(path: Path, images: Path | None, name: str = "alexnet", force: bool = False) -> Publication:
    """What becomes a version: the model at `path`, and the files beside it that `report.json` there has verified.

    The reference images are some of those in the <class>/ folders of `images`, and made ones.

    A precision that fails is left out, and the publication's notes say so; with `force` it is published all the same,
    and they say that.

    Raises:
        ExportError: the model or the images cannot be used, FP32 itself fails, or the test set decides nothing.
    """
    properties, labels, network = describe(path, name)
    report = read_report(path)
    failing = find_failing(report, force) if report else {}
    precisions = {name: each for name, each in _accuracies(report).items() if force or name not in failing}
    others = {file: path.with_name(file) for file in OTHER_PRECISIONS}
    artefacts = {"model.onnx": path} | {
        FILES[each]: others[FILES[each]] for each in precisions if FILES[each] in others
    }
    artefacts |= find_plan(path, report, {sha256(source) for source in artefacts.values()})
    files = {precision: artefacts[FILES[precision]] for precision in precisions}
    references = choose(path, find_candidates(images, labels, network.size), labels, network, files)
    what = "published because of --force" if force else "left out"
    manifest: dict[str, Any] = {
        "published": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": properties.get("data", ""),
        "checkpoint_sha256": properties.get("checkpoint_sha256", ""),
        "precisions": precisions,
        "forced": sorted(failing) if force else [],
        "sha256": {file: sha256(source) for file, source in artefacts.items()},
        "reference_images": {"times_the_tolerance": references.notices},
        "tools": describe_versions(TOOLS),
    }
    notes = tuple(f"{what}: {precision}, which {reason}" for precision, reason in failing.items())
    return Publication(network, labels, artefacts, references.answers, manifest, notes=notes)


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
        PublishError: it is about other files than the model and those beside it.
    """
    path = model.with_name(REPORT)
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
        files: dict[str, str] = report["sha256"]
        rows = [(row["precision"], row["images"], row["top1"], row["top5"], row["agreement"]) for row in report["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(f"{path}: damaged ({error}); {VERIFY_AGAIN}") from error
    verified = {FILES.get(precision) for precision, *_ in rows}
    if model.name not in files or not verified <= {model.name, *files}:
        raise PublishError(f"{model}: {path} is not about it; {VERIFY_AGAIN}, or move the model to a folder of its own")
    for name, digest in files.items():
        file = model.with_name(name)
        if not file.is_file() or sha256(file) != digest:
            raise PublishError(f"{file}: not the file that {path} is about; {VERIFY_AGAIN}")
    return report


def find_failing(report: dict[str, Any], force: bool = False) -> dict[str, str]:
    """Precision -> why it is not to be served, of those that fail against the report's first row.

    Raises:
        NotDecidedError: the test set was too small to say, and `force` is not given.
        AccuracyError: FP32 fails, in another runtime.
    """
    reference, *others = report["rows"]
    images = min(row["images"] for row in report["rows"])
    decided = images >= min(DECISIVE_IMAGES, report.get("test_set", DECISIVE_IMAGES))
    if others and not decided and not force:
        raise NotDecidedError(
            f"not decided: {images} test images are too few to say what a precision loses; compare on "
            f"{DECISIVE_IMAGES:,} or the whole test set, or publish all the same with --force"
        )
    reasons = {row["precision"]: why for row in others if (why := _failure(reference, row))}
    if "fp32" in reasons and not force:
        raise AccuracyError(f"not published: fp32 in another runtime {reasons['fp32']}; {VERIFY_AGAIN}")
    doubtful = [] if decided else [row["precision"] for row in others if row["precision"] != "fp32"]
    return {**dict.fromkeys(doubtful, f"was compared on {images} images only"), **reasons}


def _failure(reference: dict[str, Any], row: dict[str, Any]) -> str:
    precision, loss = row["precision"], round(100 * (reference["top1"] - row["top1"]), 3)
    allowed, least = ALLOWED_LOSS[precision], LEAST_AGREEMENT[precision]
    if not loss <= allowed:
        return f"loses {loss:.2f} points of top-1, more than the {allowed} allowed"
    if not row["agreement"] >= least:
        return f"gives the answer of fp32 for {row['agreement']:.3f} of the images, less than {least}"
    return ""


def find_plan(model: Path, report: dict[str, Any] | None, published: Collection[str]) -> dict[str, Path]:
    """The TensorRT plan beside a model, if `build-engine` built and verified one for Triton.

    Args:
        published: SHA-256 of the ONNX files that are published; the plan has to be built from one of them.

    Raises:
        PublishError: the plan there is not for Triton, not the one that its sidecar describes, or an older model's; or
            no report says what its precision loses.
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
    if report is None:
        raise PublishError(f"{path}: no {REPORT} says what its precision loses; {VERIFY_AGAIN}, or remove the plan")
    if not fits:
        raise PublishError(f"{path}: not a plan that was built for Triton; {remedy}")
    if digest in report["sha256"].values() and digest not in published:
        raise PublishError(f"{path}: built from {source}, which fails; build it from model.onnx, or remove it")
    if digest not in published:
        raise PublishError(f"{path}: built from another {source} than the one that is published; {remedy}")
    return {PLAN: path}


def _accuracies(report: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Top-1 and top-5 of each precision that may be served; without a report that is fp32 alone, unmeasured."""
    if report is None:
        return {"fp32": {}}
    return {row["precision"]: {"top1": row["top1"], "top5": row["top5"]} for row in report["rows"]}
