"""Another version for all servers that run on a repository: every one answers with it, or none does.

A server loads the version beside the one that it answers with, is asked the reference image, moves its callers, and
drops the one before when that has answered what it was asked: only while it switches does it hold two.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from alexnet_triton.common.files import write_errors
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.repository import Network, read_network, remove_version, set_served_version, versions
from alexnet_triton.serving.control import Control, ask_loaded_version, ask_reference_image
from alexnet_triton.serving.errors import ControlError, ServingError, WrongAnswerError
from alexnet_triton.serving.repository import Repository, has_versions, served_version, settle_versions, unpark
from alexnet_triton.serving.runs import FoundServer, find_servers

LOAD_TIMEOUT_S = 120.0
BUSY_S = 30.0  # as long as a server may have no room for a reference image, or callers before the switch their answers
QUIET_S = 1.0  # a version that completes nothing for so long after its callers have moved has no request left
_POLL_S = 0.1


def serve_version(repository: Path, version: int, *, new: bool = False) -> None:
    """Have `classify` answer with a version: at once on the running servers, else from the next start.

    Needs the repository's lock.

    Raises:
        PublishError: a running server gives a wrong reference answer with it, or none. All servers stay
            with the version before, and the new version is removed if `new`.
    """
    before = served_version(repository)
    servers: list[FoundServer] = []
    try:
        servers = find_servers(repository)
        if servers:
            _load_beside(servers, repository, version)
        set_served_version(repository, version, before if servers else None)
        for server in servers:
            _answer_with(server, repository, version)
    except BaseException as error:  # Ctrl-C too
        lost = _restore(servers, repository, before, version)
        if new:
            remove_version(repository, version)
        if lost and isinstance(error, PublishError):
            raise PublishError(f"{error}; not back at version {before}: {', '.join(lost)}; restart them") from error
        raise
    if before is not None:
        _leave(servers, repository, before)
    with write_errors(repository):
        settle_versions(repository)
    _drop_others(servers, repository, version, before)
    for other in set(versions(repository)) - {version, before}:
        remove_version(repository, other)


def _load_beside(servers: Sequence[FoundServer], repository: Path, version: int) -> None:
    """Load a version while the one before goes on answering, and ask it the reference image."""
    network = read_network(repository, version)
    with write_errors(repository):
        unpark(repository, version)
    for server in servers:
        try:
            server.control.load(network.preprocess, LOAD_TIMEOUT_S)
            server.control.load(network.name, LOAD_TIMEOUT_S)
            opened = Repository.open(repository, server.variant)
            ask_loaded_version(server.control, opened, network.name, str(version), network.size, LOAD_TIMEOUT_S)
        except WrongAnswerError as error:
            raise PublishError(f"{error} (server {server.name})") from error
        except ServingError as error:
            raise PublishError(
                f"version {version} of {network.name} does not answer on server {server.name}: {error}"
            ) from error


def _answer_with(server: FoundServer, repository: Path, version: int) -> None:
    """Have `classify` answer with a loaded version, and ask it the reference image."""
    try:
        server.control.load("classify", LOAD_TIMEOUT_S)
        _ask_patiently(server, Repository.open(repository, server.variant))
        answered = server.control.versions("classify")
    except ServingError as error:
        raise PublishError(
            f"classify of server {server.name} does not answer with version {version}: {error}"
        ) from error
    if answered[-1:] != [str(version)]:
        raise PublishError(
            f"classify of server {server.name} answers with version {', '.join(answered)}, not {version}"
        )


def _leave(servers: Sequence[FoundServer], repository: Path, before: int) -> None:
    """Wait until the version before has answered the requests that it still has.

    Triton looks a request's version up once more when it makes the labels, and answers 503 if that is unloading. Once
    the callers have moved, only those requests run in the network of the version before.
    """
    network = read_network(repository, before).name
    for server in servers:
        with suppress(ServingError):  # one that does not answer has nothing to wait for
            _wait_for_quiet(server.control, network, str(before))


def _wait_for_quiet(control: Control, model: str, version: str) -> None:
    start = changed = time.monotonic()
    last = control.completed(model, version)
    while time.monotonic() < min(changed + QUIET_S, start + BUSY_S):
        time.sleep(_POLL_S)
        now = control.completed(model, version)
        if now != last:
            last, changed = now, time.monotonic()


def _ask_patiently(server: FoundServer, repository: Repository) -> None:
    """Ask all reference images, again where a queue is full: callers may ask for more than the server can answer."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return ask_reference_image(server.control, repository, priority=1, every=True)
        except ControlError as error:
            if error.status != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _restore(servers: Sequence[FoundServer], repository: Path, before: int | None, version: int) -> list[str]:
    """Bring all servers back to the version before; returns the names of those that do not answer with it."""
    if before is None:
        return []
    set_served_version(repository, before)
    lost = [server.name for server in servers if not _answers_with(server, repository, before)]
    with write_errors(repository):
        settle_versions(repository)
    _drop_others(servers, repository, before, version)
    return lost


def _answers_with(server: FoundServer, repository: Path, version: int) -> bool:
    try:
        _answer_with(server, repository, version)
    except PublishError:
        return False
    return True


def _drop_others(servers: Sequence[FoundServer], repository: Path, version: int, before: int | None) -> None:
    """Have the servers drop what is parked now; one that cannot does so at its next load or start."""
    now = _models(read_network(repository, version))
    others = _models(read_network(repository, before)) - now if before is not None else set()
    for server in servers:
        for name in ("classify", read_network(repository, version).name, *sorted(others)):
            with suppress(ServingError):
                if name not in others and has_versions(repository / name):
                    server.control.load(name, LOAD_TIMEOUT_S)
                else:
                    server.control.unload(name, LOAD_TIMEOUT_S)


def _models(network: Network) -> set[str]:
    return {network.name, network.preprocess}
