"""Talking to a running server: is it ready, what does it answer, load and unload. Plain HTTP, no client library,
so that watching costs a server's machine next to nothing."""

import http.client
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_triton.serving.errors import ControlError
from alexnet_triton.serving.repository import Repository

KEY_HEADER = "alexnet-triton-key"


@dataclass(frozen=True)
class Control:
    """A server's HTTP address, and the key of its closed interfaces."""

    host: str
    port: int
    key: str = ""

    def ready(self, timeout_s: float = 1.0) -> bool:
        """Whether the server says that it is ready, which it also says when a stub is dead."""
        try:
            self._ask("GET", "/v2/health/ready", timeout_s=timeout_s)
        except ControlError:
            return False
        return True

    def versions(self, model: str, timeout_s: float = 1.0) -> list[str]:
        """The loaded versions of a model.

        Raises:
            ControlError: no answer, or no such model.
        """
        return json.loads(self._ask("GET", f"/v2/models/{model}", timeout_s=timeout_s))["versions"]

    def classify(
        self, image: bytes, model: str = "classify", timeout_s: float = 5.0, priority: int = 0
    ) -> tuple[str, list[float]]:
        """The version that answered and its probabilities for an encoded image; `priority` 1 overtakes, 0 is usual.

        Raises:
            ControlError: no answer in time, or a refusal.
        """
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": "encoded",
                        "datatype": "BYTES",
                        "shape": [1, 1],
                        "parameters": {"binary_data_size": 4 + len(image)},
                    }
                ],
                "outputs": [{"name": "probabilities"}],
                "parameters": {"priority": priority},
            }
        ).encode()
        body = header + struct.pack("<I", len(image)) + image
        headers = {"Inference-Header-Content-Length": str(len(header))}
        answer = json.loads(self._ask("POST", f"/v2/models/{model}/infer", body, headers, timeout_s))
        return answer["model_version"], answer["outputs"][0]["data"]

    def load(self, model: str, timeout_s: float = 60.0) -> None:
        """Load a model, or load it again where its files have changed: callers see either the old one or the new.

        Raises:
            ControlError: it did not load; what was loaded before stays.
        """
        self._ask("POST", f"/v2/repository/models/{model}/load", b"{}", timeout_s=timeout_s)

    def unload(self, model: str, timeout_s: float = 60.0) -> None:
        """Unload a model.

        Raises:
            ControlError: no answer, or a refusal.
        """
        self._ask("POST", f"/v2/repository/models/{model}/unload", b"{}", timeout_s=timeout_s)

    def loaded(self, timeout_s: float = 5.0) -> list[str]:
        """Models that are loaded, or still answer what they have while they are being unloaded.

        Raises:
            ControlError: no answer, or a refusal.
        """
        index = json.loads(self._ask("POST", "/v2/repository/index", b"{}", timeout_s=timeout_s))
        return sorted({model["name"] for model in index if model.get("state", "UNAVAILABLE") != "UNAVAILABLE"})

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float = 5.0
    ) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {KEY_HEADER: self.key, **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"no answer from {self.host}:{self.port}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ControlError(_reason(answer) or f"{path} answered {response.status}", response.status)
        return answer


def _reason(answer: bytes) -> str:
    """The first line of Triton's own explanation."""
    try:
        problem: Any = json.loads(answer)
        return str(problem["error"]).strip().splitlines()[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return ""


# WAS alexnet_triton.serving.control: Ending a server without cutting anybody off.
#
# Told to exit, Triton 2.51 goes on taking requests from connections that are open, and cuts them when its time is up.
# Unloaded, a model takes no new request and answers those it has; when all are unloaded, nothing is left to be cut.
#


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
