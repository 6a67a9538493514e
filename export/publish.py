"""A model to the repository that Triton serves.

    python -m alexnet_triton.export.publish artifacts/onnx/model.onnx --images FOLDER
    python -m alexnet_triton.export.publish --onnx resnet50.onnx --labels labels.txt --name resnet50 \\
        --mean 123.675,116.28,103.53 --scale 58.395,57.12,57.375
    python -m alexnet_triton.export.publish --rollback

With a server running on the repository, the new version is loaded, asked a reference image, and only then answers.
--onnx takes any image classifier; the model named without it is one that this project exported.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from alexnet_triton.export import adapt, live, onnx_file
from alexnet_triton.export.command import finish
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.prepare import prepare
from alexnet_triton.export.repository import (
    read_network,
    remove_version,
    served_version,
    set_served_version,
    versions,
    write_version,
)
from alexnet_triton.imaging import decode
from alexnet_triton.serving.engine import Engine, EngineConfig
from alexnet_triton.serving.errors import EngineError
from alexnet_triton.serving.repository import Repository

if __name__ == "__main__":
    from alexnet_triton.export.command import stay_quiet_while_loading

    stay_quiet_while_loading()


REPOSITORY = Path("artifacts/model_repository")


def publish(
    path: Path, images: Path | None, repository: Path = REPOSITORY, *, name: str = "alexnet", force: bool = False
) -> int:
    """Make a model the repository's next version, and have it answer; returns its number.

    Raises:
        ExportError: the model or the images cannot be used, a precision loses too much, the
            repository cannot be written, or the version does not answer rightly; in every case
            what was served before is served on.
    """
    version = write_version(repository, prepare(path, images, name, force))
    try:
        smoke_test(repository, version)
    except BaseException:  # Ctrl-C too
        remove_version(repository, version)
        raise
    serve_version(repository, version, new=True)
    return version


def smoke_test(repository: Path, version: int) -> None:
    """Ask a version its reference image in the server's own engine, before any server sees it.

    Raises:
        PublishError: it does not run, or answers wrongly.
    """
    network = read_network(repository, version)
    known = Repository.open(repository, "cpu").reference_answer(str(version))
    config = EngineConfig(max_batch_size=network.max_batch_size)
    try:
        engine = Engine(repository / network.name / str(version), config)
        probabilities = engine.infer(decode(known.image, network.size)[None])[0]
    except (EngineError, RuntimeError) as error:
        raise PublishError(f"version {version} of {network.name} does not run: {error}") from error
    index = int(probabilities.argmax())
    if not known.agrees(index, float(probabilities[index])):
        raise PublishError(live.wrong_answer(version, index, float(probabilities[index]), known))


def serve_version(repository: Path, version: int, *, new: bool = False) -> None:
    """Have `classify` answer with a version, on a running server at once, else from its next start.

    Raises:
        PublishError: a running server does not answer rightly with it. It goes on with the version
            before, and the version is removed again if it is new.
    """
    before = served_version(repository)
    server = live.running_server(repository)
    if server is None:
        set_served_version(repository, version)
    else:
        _serve_live(server, repository, version, before, new)
    for other in set(versions(repository)) - {version, before}:
        remove_version(repository, other)


def _serve_live(server: live.Control, repository: Path, version: int, before: int | None, new: bool) -> None:
    try:
        live.load_beside(server, repository, read_network(repository, version), version)
        set_served_version(repository, version)
        live.answer_with(server, repository, version)
    except BaseException:  # Ctrl-C too
        _go_back(server, repository, before, version if new else None)
        raise


def _go_back(server: live.Control, repository: Path, before: int | None, failed: int | None) -> None:
    if before is None:
        return
    set_served_version(repository, before)
    if failed is not None:
        remove_version(repository, failed)
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


def publish_any(options: argparse.Namespace) -> tuple[int, str]:
    """Publish any image classifier; returns its version, and a note on what could not be had.

    Raises:
        ExportError: as `publish`, or the model cannot be adapted.
    """
    labels = adapt.read_labels(options.labels)
    model = onnx_file.read(options.any_onnx)
    adapted = adapt.adapt(
        model, labels, options.mean, options.scale, name=options.any_onnx, scores=options.scores, size=options.size
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx_file.write_together({path: adapted.model.SerializeToString(deterministic=True)})
        version = publish(path, options.images, options.repository, name=options.name, force=options.force)
    return version, adapted.note


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.export.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model", type=Path, nargs="?", help="exported fp32 model; verified ones of other precisions by it"
    )
    what.add_argument("--onnx", type=Path, dest="any_onnx", metavar="MODEL", help="any image classifier")
    what.add_argument("--rollback", action="store_true", help="serve the version before")
    parser.add_argument("--images", type=Path, help="folder of <class>/ folders: the reference image is one of them")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="alexnet", help="the model's name in Triton (default alexnet)")
    parser.add_argument("--force", action="store_true", help="publish precisions that lose too much, on the record")
    adapt.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.any_onnx and not options.labels:
        parser.error("--onnx needs --labels, class names, one a line")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return finish("publish", lambda: _run(options))


def rollback_main(arguments: list[str] | None = None) -> int:
    return main(["--rollback", *(arguments or [])])


def _run(options: argparse.Namespace) -> None:
    note = ""
    if options.rollback:
        version = rollback(options.repository)
    elif options.any_onnx:
        version, note = publish_any(options)
    else:
        version = publish(options.model, options.images, options.repository, name=options.name, force=options.force)
    print(f"version {version} in {options.repository}" + (f"; {note}" if note else ""))


if __name__ == "__main__":
    sys.exit(main())
