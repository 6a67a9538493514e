"""What runs on this machine, and ending it."""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serving.control import Control
from serving.errors import ServingError
from serving.repository import Repository
from serving.rundir import RunDir, alive_runs

STOP_TIMEOUT_S = 25.0


@dataclass(frozen=True)
class Run:
    """A live server of this user, whoever started it."""

    directory: RunDir
    state: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.path.name

    def describe(self) -> str:
        """One line: name, health, addresses, process, repository."""
        ports, host = self.state["ports"], self.state["host"]
        health = "well" if self.is_well() else "not well"
        return (
            f"{self.name}  {health}  http://{host}:{ports['http']}  grpc://{host}:{ports['grpc']}  "
            f"pid {self.state['tritonserver']}  {self.state['repository']} ({self.state['variant']})"
        )

    def is_well(self) -> bool:
        """Whether the known image gets its known answer."""
        control = Control(self.state["host"], self.state["ports"]["http"], self.state["key"])
        try:
            known = Repository.open(self.state["repository"], self.state["variant"]).known_answer(
                control.versions("classify")[-1]
            )
            _, probabilities = control.classify(known.image, priority=1)
        except ServingError:
            return False
        index = max(range(len(probabilities)), key=probabilities.__getitem__)
        return known.agrees(index, probabilities[index])

    def stop(self) -> None:
        """End it and wait until nothing of it is left.

        Raises:
            ServingError: it is still there after `STOP_TIMEOUT_S`.
        """
        with suppress(ProcessLookupError):
            os.kill(self.state["owner"] if self.state["watched"] else self.state["keeper"], signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.name in {run.path.name for run in alive_runs()}:
            if time.monotonic() > deadline:
                raise ServingError(f"{self.name} still runs: end process {self.state['keeper']} yourself")
            time.sleep(0.1)


def find_runs() -> list[Run]:
    """This user's live servers; one that is just being started has no state yet and is left out."""
    runs = []
    for directory in alive_runs():
        with suppress(FileNotFoundError, ValueError):
            runs.append(Run(directory, json.loads(directory.state_file.read_text())))
    return runs
