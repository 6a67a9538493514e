"""ONNX to the repository that Triton serves.

    python -m export.publish artifacts/onnx/model.onnx --images FOLDER
    python -m export.publish --rollback

With a server running on the repository, the new version is loaded, asked a known image, and only then answers.
"""

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx

from export import gate, live
from export.errors import ExportError, ModelError, PublishError
from export.files import sha256
from export.images import LabelledImages, find_images
from export.report import tool_versions
from export.repository import (
    Network,
    Publication,
    read_network,
    served_version,
    switch,
    versions,
    withdraw,
    write_version,
)
from export.runners import Runner, openvino
from export.verify import run_in_batches
from imaging import decode
from serving.engine import Engine, EngineConfig
from serving.errors import EngineError
from serving.repository import Repository

REPOSITORY = Path("artifacts/model_repository")
KNOWN_IMAGE_CANDIDATES = 200
# What lies beside the fp32 model and goes with it: precision -> file.
SIBLINGS = {"fp16": "model.fp16.onnx", "int8": "model.int8.onnx", "plan": "model.plan"}


def read_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        ModelError: it is missing, truncated or not valid.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such model; export one: python -m export.to_onnx")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors share no base class
        raise ModelError(f"{path}: damaged or not ONNX: {str(error).splitlines()[0]}") from error
    return model


def describe(model: onnx.ModelProto, path: Path) -> tuple[dict[str, str], tuple[str, ...], int]:
    """Metadata, labels and input size of a model in the project's signature.

    Raises:
        ModelError: it is not in it.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    inputs = [value.name for value in model.graph.input]
    if "classes" not in properties or inputs != ["images"]:
        raise ModelError(
            f"{path}: takes {', '.join(inputs)} and names {'its' if 'classes' in properties else 'no'} classes; "
            "bring it into this project's signature with python -m export.adapt"
        )
    size = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return properties, tuple(json.loads(properties["classes"])), size


def publish(
    path: Path, images: Path, repository: Path = REPOSITORY, *, name: str = "alexnet", force: bool = False
) -> int:
    """Make a model the repository's next version, and have it answer; returns its number.

    The files beside it (`SIBLINGS`) go with it where `report.json` there has verified them.

    Raises:
        ExportError: the model or the images cannot be used, a precision loses too much, the
            repository cannot be written, or a running server does not answer rightly with it; in
            every case what was served before is served on.
    """
    publication = prepare(path, images, name, force)
    version = write_version(repository, publication)
    try:
        rehearse(repository, version)
    except ExportError:
        withdraw(repository, version)
        raise
    serve_version(repository, version, new=True)
    return version


def rehearse(repository: Path, version: int) -> None:
    """Ask a version its known image in the server's own engine, before any server sees it.

    Raises:
        PublishError: it does not run, or answers wrongly.
    """
    network = read_network(repository, version)
    known = Repository.open(repository, "cpu").known_answer(str(version))
    config = EngineConfig(max_batch_size=network.max_batch_size)
    try:
        engine = Engine(repository / network.name / str(version), config)
        probabilities = engine.infer(decode(known.image, network.size)[None])[0]
    except (EngineError, RuntimeError) as error:
        raise PublishError(f"version {version} of {network.name} does not run: {error}") from error
    index = int(probabilities.argmax())
    if not known.agrees(index, float(probabilities[index])):
        raise PublishError(live.wrong_answer(version, index, float(probabilities[index]), known))


def prepare(path: Path, images: Path, name: str, force: bool) -> Publication:
    """All that becomes a version, checked, and nothing written yet."""
    properties, labels, size = describe(read_model(path), path)
    report = gate.read_report(path)
    forced = gate.check(report, force) if report else []
    siblings = {file: path.with_name(file) for file in SIBLINGS.values() if report and file in report["sha256"]}
    artefacts = {"model.onnx": path, **siblings}
    candidates = find_images(images, labels, KNOWN_IMAGE_CANDIDATES)
    known_image, answer = choose_known_image(openvino(path), candidates, labels, size)
    manifest: dict[str, Any] = {
        "published": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": properties.get("data", ""),
        "checkpoint_sha256": properties.get("checkpoint_sha256", ""),
        "precisions": _accuracies(report),
        "forced": forced,
        "sha256": {file: sha256(source) for file, source in artefacts.items()},
        "tools": tool_versions(),
    }
    return Publication(Network(name, len(labels), size), labels, artefacts, known_image, answer, manifest)


def _accuracies(report: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Of each precision that may be served; of a model without a report, fp32 alone."""
    if report is None:
        return {"fp32": {}}
    return {row["precision"]: {"top1": row["top1"], "top5": row["top5"]} for row in report["rows"]}


def choose_known_image(
    runner: Runner, candidates: LabelledImages, labels: tuple[str, ...], size: int
) -> tuple[bytes, dict[str, Any]]:
    """The image that the network is surest of, with its answer: what a server that is well gives back."""
    probabilities = run_in_batches(runner, candidates.pixels(0, len(candidates), size), 32)
    best = int(probabilities.max(axis=1).argmax())
    index = int(probabilities[best].argmax())
    answer = {"index": index, "label": labels[index], "probability": float(probabilities[best, index])}
    return candidates.paths[best].read_bytes(), answer


def serve_version(repository: Path, version: int, *, new: bool = False) -> None:
    """Have `classify` answer with a version, on a running server at once, else from its next start.

    Raises:
        PublishError: a running server does not answer rightly with it. It goes on with the version
            before, and the version is removed again if it is new.
    """
    before = served_version(repository)
    server = live.running_server(repository)
    if server is None:
        switch(repository, version)
    else:
        _serve_live(server, repository, version, before, new)
    for other in set(versions(repository)) - {version, before}:
        withdraw(repository, other)


def _serve_live(server: live.Control, repository: Path, version: int, before: int | None, new: bool) -> None:
    try:
        live.load_beside(server, repository, read_network(repository, version), version)
        switch(repository, version)
        live.answer_with(server, repository, version)
    except ExportError:
        _go_back(server, repository, before, version if new else None)
        raise


def _go_back(server: live.Control, repository: Path, before: int | None, failed: int | None) -> None:
    if before is None:
        return
    switch(repository, before)
    if failed is not None:
        withdraw(repository, failed)
    live.load_beside(server, repository, read_network(repository, before), before)
    live.answer_with(server, repository, before)


def rollback(repository: Path) -> int:
    """Have the version before the served one answer; returns its number.

    Raises:
        PublishError: there is none.
    """
    served = served_version(repository)
    earlier = [version for version in versions(repository) if served is not None and version < served]
    if not earlier:
        raise PublishError(f"{repository}: no version before the one that is served; publish one first")
    serve_version(repository, earlier[-1])
    return earlier[-1]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("onnx", type=Path, nargs="?", help="fp32 model; verified ones of other precisions beside it")
    parser.add_argument("--images", type=Path, help="folder of <class>/ folders with test images")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="alexnet", help="the model's name in Triton (default alexnet)")
    parser.add_argument("--force", action="store_true", help="publish precisions that lose too much, on the record")
    parser.add_argument("--rollback", action="store_true", help="serve the version before")
    options = parser.parse_args(arguments)
    if not options.rollback and not (options.onnx and options.images):
        parser.error("give a model and --images, or --rollback")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.rollback:
            version = rollback(options.repository)
        else:
            version = publish(options.onnx, options.images, options.repository, name=options.name, force=options.force)
    except ExportError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    print(f"version {version} in {options.repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
