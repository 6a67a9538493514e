"""All that becomes a version, gathered and checked before anything is written."""

import io
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from alexnet_triton.common.files import sha256
from alexnet_triton.export import onnx_file, probe
from alexnet_triton.export.adapt import LARGEST_BATCH
from alexnet_triton.export.errors import AccuracyError, ModelError, PublishError
from alexnet_triton.export.images import find_images
from alexnet_triton.export.numerics import Runner, openvino
from alexnet_triton.export.report import tool_versions
from alexnet_triton.export.repository import Network, Publication
from alexnet_triton.imaging import decode

# WAS alexnet_triton.export.prepare: Which precisions of a verified network may be published.


# The most top-1 that may be lost against fp32, in points.
ALLOWED_LOSS = {"fp32": 0.0, "fp16": 0.2, "bf16": 0.2, "int8": 0.5}
REPORT = "report.json"


def read_report(model: Path) -> dict[str, Any] | None:
    """The verification report beside a model, where there is one.

    Raises:
        PublishError: it is about other files than those that lie there now.
    """
    path = model.with_name(REPORT)
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
        files: dict[str, str] = report["sha256"]
    except (ValueError, KeyError) as error:
        raise PublishError(f"{path}: damaged ({error}); verify again: python -m export all") from error
    for name, digest in files.items():
        file = model.with_name(name)
        if not file.is_file() or sha256(file) != digest:
            raise PublishError(f"{file}: not the file that {path} is about; verify again: python -m export all")
    return report


def losses(report: dict[str, Any]) -> dict[str, float]:
    """Points of top-1 that each served precision loses against fp32 in the same report."""
    top1 = {row["precision"]: row["top1"] for row in report["rows"]}
    return {precision: round(100 * (top1["fp32"] - value), 3) for precision, value in top1.items()}


def check(report: dict[str, Any], force: bool) -> list[str]:
    """The precisions that lose too much; without `force` there are none.

    Raises:
        AccuracyError: a precision loses more than `ALLOWED_LOSS`.
    """
    failing = {p: loss for p, loss in losses(report).items() if loss > ALLOWED_LOSS[p]}
    if failing and not force:
        named = ", ".join(
            f"{precision} loses {loss:.2f} points of top-1, more than the {ALLOWED_LOSS[precision]} allowed"
            for precision, loss in failing.items()
        )
        raise AccuracyError(f"not published: {named}; calibrate better, or publish all the same with --force")
    return sorted(failing)


REFERENCE_IMAGE_CANDIDATES = 200
# What lies beside the fp32 model and goes with it: precision -> file.
SIBLINGS = {"fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
PLAN = "model.plan"


def prepare(path: Path, images: Path | None, name: str = "alexnet", force: bool = False) -> Publication:
    """What becomes a version: the model at `path`, and those beside it that `report.json` there has verified.

    The reference image is one of those in the <class>/ folders of `images`, or else a made one.

    Raises:
        ExportError: the model or the images cannot be used, or a precision loses too much.
    """
    properties, labels, network = describe(path, name)
    report = read_report(path)
    forced = check(report, force) if report else []
    siblings = {file: path.with_name(file) for file in SIBLINGS.values() if report and file in report["sha256"]}
    artefacts = {"model.onnx": path, **siblings, **plan_beside(path)}
    reference_image, answer = choose_reference_image(
        openvino(path), _candidates(images, labels, network), labels, network
    )
    manifest: dict[str, Any] = {
        "published": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": properties.get("data", ""),
        "checkpoint_sha256": properties.get("checkpoint_sha256", ""),
        "precisions": _accuracies(report),
        "forced": forced,
        "sha256": {file: sha256(source) for file, source in artefacts.items()},
        "tools": tool_versions(),
    }
    return Publication(network, labels, artefacts, reference_image, answer, manifest)


def describe(path: Path, name: str) -> tuple[dict[str, str], tuple[str, ...], Network]:
    """Metadata, labels and network of a model in the project's signature.

    Raises:
        ModelError: it is damaged, or not in it.
    """
    model = onnx_file.read(path)
    onnx_file.check_signature(model, path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if "classes" not in properties:
        raise ModelError(f"{path}: names no classes; give them with --labels")
    labels = tuple(json.loads(properties["classes"]))
    batch, size = onnx_file.dims(onnx_file.image_input(model, path))[:2]
    return properties, labels, Network(name, len(labels), size or 0, batch or LARGEST_BATCH)


def plan_beside(model: Path) -> dict[str, Path]:
    """The TensorRT plan beside a model, where `alexnet_triton.export.build_engine` built and verified one for Triton.

    Raises:
        PublishError: there is one that is not for Triton, or not the one that its sidecar is about.
    """
    path = model.with_name(PLAN)
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.with_name(f"{path.name}.json").read_text())
        fits = sidecar["purpose"] == "for Triton" and sidecar["plan"]["sha256"] == sha256(path)
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise PublishError(
            f"{path}: not a plan that was built for Triton; build it with python -m alexnet_triton.export.build_engine, or remove it"
        )
    return {PLAN: path}


def _candidates(images: Path | None, labels: tuple[str, ...], network: Network) -> list[bytes]:
    if images is not None:
        return [path.read_bytes() for path in find_images(images, labels, REFERENCE_IMAGE_CANDIDATES).paths]
    made = []
    for pixels in probe.pictures(network.size):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        made.append(buffer.getvalue())
    return made


def choose_reference_image(
    runner: Runner, candidates: Sequence[bytes], labels: tuple[str, ...], network: Network
) -> tuple[bytes, dict[str, Any]]:
    """The image that the network is surest of, with its answer: what a server that is well gives back."""
    probabilities = [runner(decode(encoded, network.size)[None])[0] for encoded in candidates]
    best = max(range(len(candidates)), key=lambda place: probabilities[place].max())
    index = int(probabilities[best].argmax())
    answer = {"index": index, "label": labels[index], "probability": float(probabilities[best][index])}
    return candidates[best], answer


def _accuracies(report: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Of each precision that may be served; of a model without a report, fp32 alone."""
    if report is None:
        return {"fp32": {}}
    return {row["precision"]: {"top1": row["top1"], "top5": row["top5"]} for row in report["rows"]}
