"""The state of an unfinished run on disk."""

from pathlib import Path
from typing import Any

import torch

from training import files
from training.errors import CheckpointError


def save(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state in one piece; `identity` is what the run that takes it up must be the same in."""
    files.write_tensors(path, {"identity": identity, **state})


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a state back.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of a run with another identity.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no unfinished run there to take up; start one without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["identity"]
    except Exception as error:  # whatever a damaged archive makes torch raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged ({reason}); remove it and start without --resume") from error
    for key, ours in identity.items():
        if theirs.get(key) != ours:
            raise CheckpointError(
                f"{path}: a run with {key} {theirs.get(key)!r}, not {ours!r}; give the same, or start without --resume"
            )
    return state
