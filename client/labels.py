"""Names of the classes: the server's, and the caller's in their place."""

from pathlib import Path

from client.errors import UsageError
from client.images import blank
from client.inference import Inference
from client.results import Classification
from client.session import Session

SHOWN = 20


async def server_labels(inference: Inference) -> list[str]:
    """By index: Triton gives labels with answers alone, so a blank picture is classified.

    Raises:
        ServerError: it was not.
    """
    (outcome,) = await inference.run([blank(inference.signature)], top=inference.signature.classes)
    assert isinstance(outcome, Classification)
    return [label.label for label in sorted(outcome.top, key=lambda label: label.index)]


async def read_labels(file: str, session: Session) -> tuple[str, ...]:
    """A file's lines, one a class in the order of the model's output.

    Raises:
        UsageError: it cannot be read or has another number of them; the message lists the server's.
        ServerError: the model cannot be asked.
    """
    inference = await session.inference()
    classes, model = inference.signature.classes, session.config.model_name
    try:
        labels = tuple(Path(file).read_text(encoding="utf-8").rstrip("\n").splitlines())
        reason = "" if len(labels) == classes else f"{len(labels)} names for the {classes} classes of {model!r}"
    except UnicodeDecodeError:
        labels, reason = (), "not UTF-8 text"
    except OSError as error:
        labels, reason = (), (error.strerror or str(error)).lower()
    if reason:
        raise UsageError(f"--labels {file}: {reason}; without it they are {_listed(await server_labels(inference))}")
    return labels


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more
