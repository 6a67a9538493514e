"""The images of a test, held in memory, each with the answer that is right for it."""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.client.classifier import AsyncClassifier
from alexnet_triton.client.config import Address, Config, parse_address
from alexnet_triton.client.errors import BadImage
from alexnet_triton.client.images import payload
from alexnet_triton.client.protocol import Classification, Label, Signature
from alexnet_triton.client.servers import Deadline
from alexnet_triton.client.session import Inference
from alexnet_triton.client.sources import Sources
from alexnet_triton.common.files import IMAGE_SUFFIXES
from alexnet_triton.common.infer_request import bytes_tensor
from alexnet_triton.loadtest.errors import SettingError, TargetError

TIE = 0.01  # of probability: batches of other sizes are computed with other kernels, and may order such classes anew
MEMORY_BYTES = 1 << 30
Progress = Callable[[Sequence[int], str], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Case:
    """One image.

    Attributes:
        name: path below the folder of images.
        tensor: its bytes in a request's input tensor.
        right: indices of the classes that count as right.
    """

    name: str
    tensor: bytes
    right: frozenset[int]


@dataclass(frozen=True)
class Target:
    """The model under test; `config` is how it is reached, `steps` are an ensemble's models."""

    config: Config
    signature: Signature
    model: str
    version: str
    steps: tuple[str, ...] = ()

    @property
    def address(self) -> Address:
        """The server's; load is put on the first that was named."""
        return parse_address(self.config.addresses[0])


def find_images(folder: Path, limit: int, seed: int) -> list[Path]:
    """At most `limit` images below a folder, in an order that `seed` decides.

    Raises:
        SettingError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise SettingError(f"no folder {folder}: name one with images with --images")
    paths = [Path(each) for each in Sources((str(folder),), recursive=True) if isinstance(each, str)]
    if not paths:
        raise SettingError(
            f"no image in {folder}: put some there ({' '.join(IMAGE_SUFFIXES)}), or name another with --images"
        )
    random.Random(seed).shuffle(paths)
    return paths[:limit]


def load_images(paths: Sequence[Path], signature: Signature) -> list[bytes]:
    """The images as the model takes them.

    Raises:
        SettingError: one that is no image, or more than fit into memory.
    """
    loaded, held = [], 0
    for path in paths:
        try:
            loaded.append(payload(path, signature))
        except BadImage as error:
            raise SettingError(f"{path}: {error}; take it out of the folder") from None
        held += len(loaded[-1])
        if held > MEMORY_BYTES:
            raise SettingError(f"the images take more than {MEMORY_BYTES >> 20} MiB: take fewer with --limit")
    return loaded


async def prepare(
    config: Config,
    folder: Path,
    limit: int,
    seed: int,
    answers: Path | None = None,
    progress: Progress = lambda items, what: items,
) -> tuple[Target, list[Case]]:
    """Reach the model, load the images, and learn the right answers: from a file, else by asking for each image alone.

    Raises:
        SettingError: the images, or the file of answers.
        ServerError: the server cannot be asked, or the model is none for images.
    """
    paths = find_images(folder, limit, seed)
    async with AsyncClassifier.from_config(config) as classifier:
        inference = await classifier.session.inference()
        signature = inference.signature
        images = load_images(paths, signature)
        asked = 1 if answers else len(paths)
        found = [await _classify(inference, paths[i], images[i]) for i in progress(range(asked), "answers")]
        target = Target(config, signature, config.model_name, found[0].version, await _steps(classifier, config))
    right = read_answers(answers, paths) if answers else [right_classes(each.top) for each in found]
    tensors = [input_tensor(image, signature) for image in images]
    names = [str(path.relative_to(folder)) for path in paths]
    return target, list(map(Case, names, tensors, right))


def input_tensor(image: bytes, signature: Signature) -> bytes:
    """An image that was loaded for the model, as a request's input tensor."""
    return bytes_tensor([image]) if signature.kind == "encoded" else image


async def _classify(inference: Inference, path: Path, image: bytes) -> Classification:
    (answer,) = await inference.run([image], top=min(2, inference.signature.classes))
    if not isinstance(answer, Classification):
        raise TargetError(f"{path} is refused: {answer}")
    return answer


async def _steps(classifier: AsyncClassifier, config: Config) -> tuple[str, ...]:
    described, _, _ = await classifier.session.dispatcher.send(
        lambda server, left_s: server.transport.model_config(config.model_name, config.version, left_s),
        Deadline(config.timeout_s),
    )
    steps = described.get("ensemble_scheduling", {}).get("step", ())
    return tuple(str(each["model_name"]) for each in steps)


def right_classes(top: Sequence[Label]) -> frozenset[int]:
    """The most probable class, and the next where the two are as good as equal."""
    return frozenset(each.index for each in top[:2] if each.probability >= top[0].probability - TIE)


def read_answers(file: Path, paths: Sequence[Path]) -> list[frozenset[int]]:
    """The right classes of images, from lines of `alexnet-classify --format json`.

    Raises:
        SettingError: the file cannot be read, or an image is not in it.
    """
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        known = {
            Path(line["path"]).resolve(): right_classes([Label(**each) for each in line["top"]])
            for line in lines
            if "top" in line
        }
    except OSError as error:
        raise SettingError(f"--answers {file}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(f"--answers {file}: not the output of alexnet-classify --format json") from None
    for path in paths:
        if path.resolve() not in known:
            raise SettingError(f"--answers {file}: {path} is not in it; classify the whole folder again")
    return [known[path.resolve()] for path in paths]
