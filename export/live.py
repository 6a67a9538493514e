"""A running server brought to another version, while it answers at every moment."""

from pathlib import Path

from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.repository import Network
from alexnet_triton.serving.control import Control, ask_loaded_version
from alexnet_triton.serving.errors import ServingError, WrongAnswerError
from alexnet_triton.serving.repository import Repository
from alexnet_triton.serving.runs import find_runs

LOAD_TIMEOUT_S = 120.0


def running_server(repository: Path) -> Control | None:
    """The server of this user that serves `repository`, if one does."""
    runs = (run for run in find_runs() if Path(run.state["repository"]) == repository.absolute())
    return next((run.control for run in runs), None)


def load_beside(server: Control, repository: Path, network: Network, version: int) -> None:
    """Load a version while the one before goes on answering, and ask it the reference image.

    Raises:
        PublishError: it does not load, or answers wrongly.
    """
    try:
        server.load(network.preprocess, LOAD_TIMEOUT_S)
        server.load(network.name, LOAD_TIMEOUT_S)
        opened = Repository.open(repository, "cpu")
        ask_loaded_version(server, opened, network.name, str(version), network.size, LOAD_TIMEOUT_S)
    except WrongAnswerError as error:
        raise PublishError(str(error)) from error
    except ServingError as error:
        raise PublishError(f"version {version} of {network.name} does not answer: {error}") from error


def answer_with(server: Control, repository: Path, version: int) -> None:
    """Have `classify` answer with a version that is loaded.

    Raises:
        PublishError: it does not.
    """
    try:
        server.load("classify", LOAD_TIMEOUT_S)
        reference = Repository.open(repository, "cpu").reference_answer(str(version))
        answered, _ = server.classify(reference.image)
    except ServingError as error:
        raise PublishError(f"classify does not answer with version {version}: {error}") from error
    if answered != str(version):
        raise PublishError(f"classify answers with version {answered}, not {version}")
