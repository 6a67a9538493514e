"""A running server brought to another version, without a moment in which it does not answer."""

import json
from pathlib import Path

import numpy as np
import tritonclient.http
from tritonclient.utils import InferenceServerException

from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.repository import Network
from alexnet_triton.imaging import decode
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.errors import ControlError
from alexnet_triton.serving.repository import ReferenceAnswer, Repository
from alexnet_triton.serving.runs import alive_runs

LOAD_TIMEOUT_S = 120.0


def running_server(repository: Path) -> Control | None:
    """The server of this user that serves `repository`, if one does."""
    for run in alive_runs():
        try:
            state = json.loads(run.state_file.read_text())
        except (OSError, ValueError):
            continue  # it is just starting, or just ending
        if Path(state["repository"]) == repository.absolute():
            return Control(state["host"], state["ports"]["http"], state["key"])
    return None


def load_beside(server: Control, repository: Path, network: Network, version: int) -> None:
    """Load a version while the one before goes on answering, and ask it the reference image.

    Raises:
        PublishError: it does not load, or answers wrongly.
    """
    try:
        server.load(network.preprocess, LOAD_TIMEOUT_S)
        server.load(network.name, LOAD_TIMEOUT_S)
        _ask_reference_image(server, repository, network, version)
    except (ControlError, InferenceServerException, OSError) as error:
        raise PublishError(f"version {version} of {network.name} does not answer: {_line(error)}") from error


def answer_with(server: Control, repository: Path, version: int) -> None:
    """Have `classify` answer with a version that is loaded.

    Raises:
        PublishError: it does not.
    """
    known = repository / "classify" / str(version) / "known.jpg"
    try:
        server.load("classify", LOAD_TIMEOUT_S)
        answered, _ = server.classify(known.read_bytes())
    except (ControlError, OSError) as error:
        raise PublishError(f"classify does not answer with version {version}: {_line(error)}") from error
    if answered != str(version):
        raise PublishError(f"classify answers with version {answered}, not {version}")


def _ask_reference_image(server: Control, repository: Path, network: Network, version: int) -> None:
    known = Repository.open(repository, "cpu").reference_answer(str(version))
    pixels = decode(known.image, network.size)[None]
    tensor = tritonclient.http.InferInput("images", list(pixels.shape), "UINT8").set_data_from_numpy(pixels)
    with tritonclient.http.InferenceServerClient(f"{server.host}:{server.port}") as client:
        probabilities = client.infer(network.name, [tensor], model_version=str(version)).as_numpy("probabilities")[0]
    index = int(np.argmax(probabilities))
    if not known.agrees(index, float(probabilities[index])):
        raise PublishError(wrong_answer(version, index, float(probabilities[index]), known))


def wrong_answer(version: int, index: int, probability: float, known: ReferenceAnswer) -> str:
    """What a version says for its reference image, and what it should say."""
    return (
        f"version {version} says class {index} with {probability:.2f} for its reference image, "
        f"which is {known.index} ({known.label}) with {known.probability:.2f}"
    )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
