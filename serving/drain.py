"""Ending a server without cutting anybody off.

Told to exit, Triton 2.51 goes on taking requests from connections that are open, and cuts them when its time is up.
Unloaded, a model takes no new request and answers those it has; when all are unloaded, nothing is left to be cut.
"""

import time
from collections.abc import Sequence

from serving.control import Control
from serving.errors import ControlError
from serving.repository import Repository

_POLL_S = 0.02


def drain(control: Control, repository: Repository, timeout_s: float) -> bool:
    """Have every request in flight answered and every new one refused; whether that was done in `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    ensembles = [name for name, config in repository.configs.items() if config.HasField("ensemble_scheduling")]
    others = [name for name in repository.configs if name not in ensembles]
    try:
        return all(_unload(control, models, deadline) for models in (ensembles, others))  # their steps last
    except ControlError:
        return False


def _unload(control: Control, models: Sequence[str], deadline: float) -> bool:
    for name in models:
        control.unload(name, timeout_s=_left(deadline))
    while set(control.loaded(timeout_s=_left(deadline))) & set(models):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _left(deadline: float) -> float:
    return max(_POLL_S, deadline - time.monotonic())
