"""What becomes a version: files, labels and reference images, gathered and checked before anything is written."""

import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet_triton.common.files import sha256
from alexnet_triton.common.provenance import describe_versions
from alexnet_triton.export import onnx_file
from alexnet_triton.export.adapt import LARGEST_BATCH, pictures
from alexnet_triton.export.errors import AccuracyError, ModelError, NotDecidedError, PublishError
from alexnet_triton.export.numerics import Runner, find_images, openvino, run_in_batches
from alexnet_triton.export.repository import Network, Publication
from alexnet_triton.export.verify import TOOLS
from alexnet_triton.imaging import decode
from alexnet_triton.serving.repository import TOLERANCES, ReferenceAnswer

# The most top-1 that a precision may lose against the first row, in points. FP32 in another runtime may decide a tie
# otherwise.
ALLOWED_LOSS = {"fp32": 0.05, "fp16": 0.2, "bf16": 0.2, "int8": 0.5}
# The least part of the images that have the same top-1 in both. Rounding changes it on near ties only: measured are
# 0.9998 in FP16, 0.997 in BF16 and 0.989 in INT8, less with more classes. A network that answers something else can be
# right as often, but it agrees no more often than chance.
LEAST_AGREEMENT = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.98, "int8": 0.9}
# The most that probabilities may move, as `Comparison.distance` counts. Measured are 0.015 in BF16 and 0.03 in INT8 on
# EfficientNet-Lite0, and 0.001 in INT8 on AlexNet after five minutes of training.
MOST_DISTANCE = {"fp32": 0.001, "fp16": 0.02, "bf16": 0.05, "int8": 0.1}
DECISIVE_IMAGES = 1000  # or the whole test set: on a few images, any loss may be chance
REPORT, PLAN = "report.json", "model.plan"
VERIFY_AGAIN = "verify again: alexnet-triton export"
FILES = {"fp32": "model.onnx", "bf16": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
OTHER_PRECISIONS = ("model.fp16.onnx", "model.int8.onnx")
REFERENCE_IMAGES = 5
REFERENCE_CANDIDATES = 96
# The likeliest class of a good reference image has about this probability: near 1, no fault changes it much.
MIDDLING = 0.6
STEADY = 0.5  # of the tolerance, at most, is what the engines here differ by
SHIFT_PIXELS = 8
FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels swapped": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    f"crop {SHIFT_PIXELS} pixels off": lambda pixels: np.roll(pixels, SHIFT_PIXELS, axis=2),
}


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
    candidates = find_candidates(images, labels, network.size)
    measured = _accuracies(report)
    files = {"model.onnx": path, **{file: path.with_name(file) for file in OTHER_PRECISIONS}}
    served = {each: files[FILES[each]] for each in measured if force or each not in failing}
    references = choose_references(path, candidates, labels, network, served)
    if references.unsteady and not force:
        failing |= references.unsteady
        served = {each: file for each, file in served.items() if each not in failing}
        references = choose_references(path, candidates, labels, network, served)
    precisions = {each: measured[each] for each in served}
    others = {FILES[each] for each in precisions} & {*OTHER_PRECISIONS}
    artefacts = {"model.onnx": path, **{file: files[file] for file in sorted(others)}}
    artefacts |= find_plan(path, report, {sha256(source) for source in artefacts.values()}, network.max_batch_size)
    what = "published because of --force" if force else "left out"
    manifest: dict[str, Any] = {
        "published": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": properties.get("data", ""),
        "checkpoint_sha256": properties.get("checkpoint_sha256", ""),
        "compared": (report or {}).get("compared", "FP32 alone, compared with nothing"),
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
        keys = ("precision", "images", "top1", "top5", "agreement", "distance")
        rows = [tuple(row[key] for key in keys) for row in report["rows"]]
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
    precision = row["precision"]
    allowed, least, most = ALLOWED_LOSS[precision], LEAST_AGREEMENT[precision], MOST_DISTANCE[precision]
    if row["top1"] is not None:
        loss = round(100 * (reference["top1"] - row["top1"]), 3)
        if not loss <= allowed:
            return f"loses {loss:.2f} points of top-1, more than the {allowed} allowed"
    if not row["agreement"] >= least:
        return f"gives the answer of fp32 for {row['agreement']:.3f} of the images, less than {least}"
    if not row["distance"] <= most:
        return f"moves {row['distance']:.3f} of the probability to other classes, more than {most}"
    return ""


def find_plan(
    model: Path, report: dict[str, Any] | None, published: Collection[str], largest_batch: int
) -> dict[str, Path]:
    """The TensorRT plan beside a model, if `build-engine` built and verified one for Triton.

    Args:
        published: SHA-256 of the ONNX files that are published; the plan has to be built from one of them.
        largest_batch: images that Triton may hand the plan at once.

    Raises:
        PublishError: the plan there is not for Triton, not the one that its sidecar describes, an older model's, or for
            smaller batches; or no report says what its precision loses.
    """
    path = model.with_name(PLAN)
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.with_name(f"{path.name}.json").read_text())
        fits = sidecar["purpose"] == "for Triton" and sidecar["plan"]["sha256"] == sha256(path)
        source, digest = sidecar["onnx"]["file"], sidecar["onnx"]["sha256"]
        batch = sidecar["profile"]["max"][0]
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
    if batch < largest_batch:  # Triton's backend loads it, and fails each larger batch that the queue forms
        raise PublishError(
            f"{path}: takes batches of {batch} images, and Triton forms batches of {largest_batch}; build it with "
            f"--max {largest_batch}, or remove it"
        )
    return {PLAN: path}


def _accuracies(report: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """What was measured of each precision that may be served; without a report that is fp32 alone, unmeasured."""
    if report is None:
        return {"fp32": {}}
    keys = ("top1", "top5", "agreement", "distance")
    return {row["precision"]: {key: row[key] for key in keys if row[key] is not None} for row in report["rows"]}


@dataclass(frozen=True)
class References:
    """The chosen images.

    Attributes:
        notices: for each of `FAULTS`, how many times the tolerance it moves the answer to one of the images.
        unsteady: precision -> why it cannot be served, of those that answer one of the images outside the tolerance.
    """

    answers: tuple[ReferenceAnswer, ...]
    notices: dict[str, float]
    unsteady: dict[str, str]


def find_candidates(images: Path | None, labels: Sequence[str], size: int) -> list[bytes]:
    """Encoded images: some of those in the <class>/ folders of `images`, and made ones, which have colours.

    Raises:
        ModelError: there are no images, or not of these classes.
    """
    found = (
        []
        if images is None
        else [path.read_bytes() for path in find_images(images, labels, REFERENCE_CANDIDATES).paths]
    )
    return found + [_encode(pixels) for pixels in pictures(size)]


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def choose_references(
    model: Path, candidates: Sequence[bytes], labels: Sequence[str], network: Network, served: dict[str, Path]
) -> References:
    """Choose `REFERENCE_IMAGES` images: for each fault the one that it changes most, then those of middling confidence.

    Args:
        model: the FP32 model, whose probabilities are the reference answers.
        served: precision -> file, of what a server may run; images on which one of them is unsteady are left out.
    """
    run = _in_batches(openvino(model), network)
    pixels = np.stack([decode(each, network.size) for each in candidates])
    expected = run(pixels)
    allowed = max(TOLERANCES[precision] for precision in served) * np.minimum(1, expected.max(axis=1) / MIDDLING)
    off = {
        name: _distances(_in_batches(openvino(file, name), network), pixels, expected) / allowed
        for name, file in served.items()
        if name in ("bf16", "int8")
    }
    unsteady = np.max([0 * allowed, *off.values()], axis=0)
    moved = {name: _distances(run, fault(pixels), expected) for name, fault in FAULTS.items()}
    order = _order(expected, unsteady, moved)[:REFERENCE_IMAGES]
    notices = {name: round(float((moved[name] / allowed)[order].max()), 2) for name in moved}
    answers = tuple(_answer(candidates[i], expected[i], labels, float(allowed[i])) for i in order)
    reason = "answers reference images outside the tolerance"
    return References(answers, notices, {name: reason for name, each in off.items() if each[order].max() > 1})


def _order(expected: np.ndarray, unsteady: np.ndarray, moved: dict[str, np.ndarray]) -> list[int]:
    """The steadier and less sure half of the candidates, the best first: one a fault, one a class, the rest."""
    off = np.abs(expected.max(axis=1) - MIDDLING) + (unsteady > STEADY)
    pool = [int(i) for i in np.argsort(off, kind="stable")[: max(REFERENCE_IMAGES, len(off) // 2)]]
    noticing = [max(pool, key=distances.__getitem__) for distances in moved.values()]
    first_of_class = {int(expected[i].argmax()): i for i in reversed(pool)}
    return list(dict.fromkeys([*noticing, *sorted(first_of_class.values(), key=pool.index), *pool]))


def _in_batches(run: Runner, network: Network) -> Runner:
    return lambda pixels: run_in_batches(run, pixels, network.max_batch_size)


def _distances(run: Runner, pixels: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(run(pixels) - expected).max(axis=1)


def _answer(image: bytes, expected: np.ndarray, labels: Sequence[str], tolerance: float) -> ReferenceAnswer:
    probabilities = {index: round(float(value), 7) for index, value in enumerate(expected)}
    return ReferenceAnswer("new", image, labels[int(expected.argmax())], probabilities, tolerance)
