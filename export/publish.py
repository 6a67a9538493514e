"""The commands `publish` and `rollback`: a model to the repository that Triton serves, and back to the version before.

    alexnet-triton publish artifacts/onnx/model.onnx --images FOLDER
    alexnet-triton publish --onnx resnet50.onnx --labels labels.txt --name resnet50 \\
        --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375

If a server runs on the repository, it loads the new version, is asked the reference image, and only then answers
with it. --onnx takes any image classifier; without it, MODEL is one that this project exported. Mean and standard
deviation are of pixel values 0 to 255: the network takes (x - mean) / std.
"""

import argparse
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from alexnet_triton.common.command import Parser, complain, finish
from alexnet_triton.common.files import write_errors
from alexnet_triton.export import adapt
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.prepare import prepare
from alexnet_triton.export.repository import Publication, add_again, add_version, remove_leftovers, stage, versions
from alexnet_triton.export.rollout import serve_version
from alexnet_triton.export.settings import MAX_WAIT_S, add_max_wait
from alexnet_triton.imaging import decode
from alexnet_triton.serving.control import judge
from alexnet_triton.serving.engine import Engine, EngineConfig
from alexnet_triton.serving.errors import EngineError, WrongAnswerError
from alexnet_triton.serving.repository import locked, read_references, served_version, settle_versions

PUBLISH = "alexnet-triton publish"
FORCE_HELP = (
    "publish the precisions too that lose too much, or were compared on too few images; each is named, "
    "and the manifest lists it as forced"
)
REPOSITORY = Path("artifacts/model_repository")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
RESERVED = re.compile(r"classify|preprocess(_\d+)?")
NOTHING_BEFORE = "no version before the one that is served; publish one first"


def publish(
    path: Path,
    images: Path | None,
    repository: Path = REPOSITORY,
    *,
    name: str = "alexnet",
    force: bool = False,
    max_wait_s: float = MAX_WAIT_S,
) -> int:
    """Make a model the repository's next version, and have `classify` answer with it; returns its number.

    Raises:
        UserError: the model or the images cannot be used, FP32 itself fails, the test set decides nothing, the
            repository cannot be written, or the version gives a wrong reference answer. The version
            before stays served in every case.
    """
    publication = replace(prepare(path, images, name, force), max_wait_s=max_wait_s)
    for note in publication.notes:
        complain(PUBLISH, note)
    with stage(repository, publication) as staging:
        smoke_test(staging, publication)
        with _publishing(repository, PUBLISH):
            version = add_version(repository, staging, publication)
            serve_version(repository, version, new=True)
    return version


@contextmanager
def _publishing(repository: Path, program: str) -> Iterator[None]:
    """Hold the repository's lock, with nothing in it of a publication that was killed."""
    with locked(repository, program):
        with write_errors(repository):
            settle_versions(repository)
            remove_leftovers(repository)
        yield


def smoke_test(staging: Path, publication: Publication) -> None:
    """Ask a staged version the reference images in the server's own engine, before any server can load it.

    Raises:
        PublishError: it does not run, or gives a wrong reference answer.
    """
    network = publication.network
    try:
        engine = Engine(staging / "network", EngineConfig(max_batch_size=network.max_batch_size))
        for reference in read_references(staging / "classify", "new"):
            judge(reference, engine.infer(decode(reference.image, network.size)[None])[0].tolist())
    except WrongAnswerError as error:
        raise PublishError(str(error)) from error
    except (EngineError, RuntimeError) as error:
        raise PublishError(f"the new version of {network.name} does not run: {error}") from error


def rollback(repository: Path) -> tuple[int, int]:
    """Have `classify` answer with the version before the served one, published again as the next.

    Triton answers with the highest version that is loaded, and while the callers move two are.

    Returns:
        The new number, and that of the version before.

    Raises:
        PublishError: there is none, or it does not answer.
    """
    if not versions(repository):
        raise PublishError(f"{repository}: {NOTHING_BEFORE}")
    with _publishing(repository, "alexnet-triton rollback"):
        served = served_version(repository)
        earlier = [version for version in versions(repository) if served is not None and version < served]
        if not earlier:
            raise PublishError(f"{repository}: {NOTHING_BEFORE}")
        version = add_again(repository, earlier[-1])
        serve_version(repository, version, new=True)
        return version, earlier[-1]


def main(words: Sequence[str]) -> int:
    """Publish a model; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=PUBLISH, description=__doc__, formatter_class=raw)
    model = parser.add_mutually_exclusive_group(required=True)
    text = "exported fp32 model; verified files of other precisions beside it are published too"
    model.add_argument("model", type=Path, nargs="?", help=text)
    model.add_argument("--onnx", type=Path, dest="any_onnx", metavar="MODEL", help="any image classifier")
    parser.add_argument("--images", type=Path, help="folder of <class>/ folders: the reference image is one of them")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    add_name(parser)
    add_max_wait(parser)
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    adapt.add_options(parser.add_argument_group("with --onnx"))
    options = parser.parse_args(words)
    if options.any_onnx and not options.labels:
        parser.error("--onnx needs --labels, class names, one a line")
    return finish(parser.prog, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    path, note = options.model, ""
    with tempfile.TemporaryDirectory() as folder:
        if options.any_onnx:
            path = Path(folder, "model.onnx")
            note = adapt.write_adapted(options.any_onnx, adapt.read_options(options), path)
        settings = {"name": options.name, "force": options.force, "max_wait_s": options.max_wait}
        version = publish(path, options.images, options.repository, **settings)
    print(f"version {version} in {options.repository}" + (f"; {note}" if note else ""))


def add_name(parser: argparse.ArgumentParser) -> None:
    """The option --name."""
    text = "the model's name in Triton (default alexnet)"
    parser.add_argument("--name", type=model_name, default="alexnet", help=text)


def model_name(text: str) -> str:
    """An argument's type: a name for a network in the repository, which is also its folder's."""
    if not NAME.fullmatch(text):
        allowed = "1 to 63 of a-z, 0-9, _ and -, a letter or digit first"
        raise argparse.ArgumentTypeError(f"{text!r} is no name for a model: give {allowed}")
    if RESERVED.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a model of every repository: give the network another name")
    return text


def rollback_main(words: Sequence[str]) -> int:
    """Have the version before the served one answer; returns the exit code."""
    parser = Parser(prog="alexnet-triton rollback", description="Serve the version before the one that is served.")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _roll_back(options.repository))


def _roll_back(repository: Path) -> None:
    version, before = rollback(repository)
    print(f"version {version} in {repository}, which is version {before} again")
