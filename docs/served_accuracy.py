"""Top-1 and top-5 of photographs through a server, in several precisions, and how far these answer as the first does.

    python docs/served_accuracy.py --repository artifacts/imagenet/model_repository --images photos

`photos` holds photographs in <class>/ folders, or in one folder whose files are named <anything>_<class>.jpg.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.client import Classification, Classifier
from alexnet_triton.common.command import Parser, UserError, finish
from alexnet_triton.common.files import is_image, write_json
from alexnet_triton.common.provenance import describe_command, describe_hardware
from alexnet_triton.loadtest.variants import variant_of
from alexnet_triton.serving import Server
from alexnet_triton.serving.repository import served_version
from alexnet_triton.training.log import accuracy


def main(words: list[str]) -> int:
    parser = Parser(prog="served_accuracy", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], metavar="PRECISION")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    return finish("served_accuracy", lambda: _run(options, words))


def _run(options: Any, words: list[str]) -> None:
    classes = read_labels(options.repository)
    files, labels = find_photographs(options.images, classes)
    answers = {each: ask(options.repository, each, files, len(classes)) for each in options.precisions}
    rows = compare(answers, labels)
    for row in rows:
        print(
            f"{row['precision']}: top-1 {row['top1']:.4f}, top-5 {row['top5']:.4f} on {len(files)} photographs; "
            f"differs from {rows[0]['precision']} on {row['differ']}, by at most {row['largest_difference']:.4f}"
        )
    if options.json:
        command = describe_command(["docs/served_accuracy.py", *words])
        write_json(options.json, {"command": command, "hardware": describe_hardware(), "rows": rows})


def read_labels(repository: Path) -> list[str]:
    """The classes of the served version, in the order of its answers."""
    path = repository / "classify" / f"labels.{served_version(repository)}.txt"
    return path.read_text(encoding="utf-8").splitlines()


def find_photographs(folder: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """Files, and their labels, int64 [N].

    Raises:
        UserError: there are none, or one is named after no class.
    """
    files = sorted(path for path in folder.glob("**/*") if is_image(path))
    if not files:
        raise UserError(f"{folder}: no photographs")
    labels = []
    for path in files:
        name = path.parent.name if path.parent != folder else path.stem.split("_", 1)[-1].replace("_", " ")
        if name not in classes:
            raise UserError(f"{path}: {name!r} is no class of the server's")
        labels.append(classes.index(name))
    return files, np.array(labels)


def ask(repository: Path, precision: str, files: list[Path], classes: int) -> np.ndarray:
    """The probabilities that a server in this precision gives, float64 [N, classes].

    Raises:
        UserError: it does not start, or a file is not classified.
    """
    found = np.zeros((len(files), classes))
    with (
        variant_of(repository, {"precision": precision}) as copy,
        Server(copy, http_port=0, grpc_port=0, metrics_port=0) as server,
        Classifier(f"grpc://{server.grpc_address}", top=classes) as classifier,
    ):
        for row, result in zip(found, classifier.classify_many(files), strict=True):
            if not isinstance(result, Classification):
                raise UserError(f"{result.path}: {result.error}")
            for label in result.top:
                row[label.index] = label.probability
    return found


def compare(answers: dict[str, np.ndarray], labels: np.ndarray) -> list[dict[str, Any]]:
    """A row for each precision; the first is what the others are compared with."""
    reference = next(iter(answers.values()))
    rows = []
    for precision, own in answers.items():
        found = accuracy(own, labels)
        differ = int((own.argmax(axis=1) != reference.argmax(axis=1)).sum())
        largest = float(np.abs(own - reference).max())
        rows.append({"precision": precision, "top1": found.top1, "top5": found.top5, "images": found.images})
        rows[-1] |= {"differ": differ, "largest_difference": largest}
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
