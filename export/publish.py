"""ONNX to the repository that Triton serves: python -m export.publish artifacts/onnx/model.onnx --images FOLDER."""

import argparse
import json
import sys
from pathlib import Path

import onnx

from export.errors import ExportError, ModelError
from export.images import LabelledImages, find_images
from export.repository import Publication, write_version
from export.runners import Runner, openvino
from export.verify import run_in_batches

REPOSITORY = Path("artifacts/model_repository")
KNOWN_IMAGE_CANDIDATES = 200


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


def describe(model: onnx.ModelProto) -> tuple[tuple[str, ...], int]:
    """Classes and input size of a model that `export.to_onnx` wrote."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if "classes" not in properties:
        raise ModelError("the model names no classes; export it with python -m export.to_onnx")
    return tuple(json.loads(properties["classes"])), model.graph.input[0].type.tensor_type.shape.dim[1].dim_value


def publish(path: Path, images: Path, repository: Path = REPOSITORY) -> int:
    """Make an exported network the repository's next version; returns its number.

    Raises:
        ExportError: the model or the images cannot be used, or the repository cannot be written.
    """
    classes, size = describe(read_model(path))
    candidates = find_images(images, classes, KNOWN_IMAGE_CANDIDATES)
    known_image, answer = choose_known_image(openvino(path), candidates, classes, size)
    manifest = {"classes": len(classes), "precisions": ["f32"]}
    publication = Publication(classes, size, {"model.onnx": path}, known_image, answer, manifest)
    return write_version(repository, publication)


def choose_known_image(
    runner: Runner, candidates: LabelledImages, classes: tuple[str, ...], size: int
) -> tuple[bytes, dict[str, object]]:
    """The image that the network is surest of, with its answer: what a server that is well gives back."""
    probabilities = run_in_batches(runner, candidates.pixels(0, len(candidates), size), 32)
    best = int(probabilities.max(axis=1).argmax())
    index = int(probabilities[best].argmax())
    answer = {"index": index, "label": classes[index], "probability": float(probabilities[best, index])}
    return candidates.paths[best].read_bytes(), answer


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export.publish", description=__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of <class>/ folders with test images")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        version = publish(options.onnx, options.images, options.repository)
    except ExportError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    print(f"version {version} in {options.repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
