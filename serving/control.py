"""Talking to a running server: readiness, the reference image, loading, unloading, draining.

Questions go over plain HTTP without a client library, so that watching a server costs its machine next to nothing.
Orders to load and unload go over gRPC: an HTTP thread of Triton answers none of its connections while it loads a model.
"""

import http.client
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np

from alexnet_triton.common.infer_request import HEADER_LENGTH, build_header, bytes_tensor, infer_path
from alexnet_triton.imaging import decode
from alexnet_triton.serving.errors import ControlError, StalledError, WrongAnswerError
from alexnet_triton.serving.repository import ReferenceAnswer, Repository

KEY_HEADER = "alexnet-triton-key"
GRPC_KEY_HEADER = f"triton-grpc-protocol-{KEY_HEADER}"  # the name that Triton gives it over gRPC
PROGRESS_S = 10.0  # a question waits so long, and nothing is executed meanwhile: the server does not work
SWITCHES = 3  # to other versions, at most, while a reference image is asked
_POLL_S, _PROGRESS_POLL_S = 0.02, 0.25
_EXECUTIONS = re.compile(r'^nv_inference_exec_count\{model="([^"]+)",[^}]*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Control:
    """A server's HTTP address, the key of its closed interfaces, and its other ports; gRPC's is 0 where it is TLS."""

    host: str
    port: int
    key: str = ""
    grpc_port: int = 0
    metrics_port: int = 0

    def ready(self, timeout_s: float = 1.0) -> bool:
        """The server's ready flag; it stays true after a stub dies."""
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
        return self._ask_json("GET", f"/v2/models/{model}", timeout_s=timeout_s)["versions"]

    def classify(self, image: bytes, timeout_s: float = 5.0, priority: int = 0) -> tuple[str, list[float]]:
        """Have `classify` answer for an encoded image.

        Args:
            priority: Triton's; 1 overtakes what waits, 0 is the model's default.

        Returns:
            The version that answered, and its probabilities.

        Raises:
            ControlError: no answer in time, or a refusal.
        """
        tensor = {"name": "encoded", "datatype": "BYTES", "shape": [1, 1]}
        return self._infer("classify", "", tensor, bytes_tensor([image]), timeout_s, priority)

    def classify_pixels(self, model: str, version: str, pixels: np.ndarray, timeout_s: float = 5.0) -> list[float]:
        """The probabilities that a loaded version of a network gives for one image, uint8 [S, S, 3].

        Raises:
            ControlError: no answer in time, or a refusal.
        """
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *pixels.shape]}
        return self._infer(model, version, tensor, pixels.tobytes(), timeout_s)[1]

    def _infer(
        self, model: str, version: str, tensor: dict[str, Any], data: bytes, timeout_s: float, priority: int = 0
    ) -> tuple[str, list[float]]:
        header = build_header(tensor, len(data), {"name": "probabilities"}, {"priority": priority})
        headers = {HEADER_LENGTH: str(len(header))}
        answer = self._ask_json("POST", infer_path(model, version), header + data, headers, timeout_s)
        return answer["model_version"], answer["outputs"][0]["data"]

    def executions(self, timeout_s: float = 5.0) -> Counter[str]:
        """Model -> batches that it has run since its load: they grow while the server makes progress.

        They are read from Triton's metrics, whose port no caller floods.

        Raises:
            ControlError: no answer.
        """
        counts: Counter[str] = Counter()
        metrics = self._ask("GET", "/metrics", timeout_s=timeout_s, port=self.metrics_port).decode()
        for model, count in _EXECUTIONS.findall(metrics):
            counts[model] += int(float(count))
        return counts

    def completed(self, model: str, version: str, timeout_s: float = 5.0) -> int:
        """Requests that a version of a model has answered or refused since its load.

        Raises:
            ControlError: no answer, or no such version.
        """
        answer = self._ask_json("GET", f"/v2/models/{model}/versions/{version}/stats", timeout_s=timeout_s)
        counts = answer["model_stats"][0]["inference_stats"]
        return counts["success"]["count"] + counts["fail"]["count"]

    def load(self, model: str, timeout_s: float = 60.0) -> None:
        """Load a model, or load it again where its files have changed: callers see either the old one or the new.

        Raises:
            ControlError: it did not load; what was loaded before stays.
        """
        self._order("Load", model, timeout_s)

    def replace(self, model: str, timeout_s: float = 60.0) -> None:
        """Load a model once more, whose files are as before: it answers until the new one does.

        Triton does nothing where nothing has changed, so its configuration gets a parameter that says when.

        Raises:
            as `load`.
        """
        config = self._ask_json("GET", f"/v2/models/{model}/config", timeout_s=timeout_s)
        config.setdefault("parameters", {})["replaced"] = {"string_value": str(time.time_ns())}
        self._order("Load", model, timeout_s, {"config": json.dumps(config)})

    def unload(self, model: str, timeout_s: float = 60.0) -> None:
        """Unload a model.

        Raises:
            ControlError: no answer, or a refusal.
        """
        self._order("Unload", model, timeout_s)

    def _order(self, order: str, model: str, timeout_s: float, parameters: Mapping[str, str] = {}) -> None:
        if not self.grpc_port:
            body = json.dumps({"parameters": parameters}).encode()
            self._ask("POST", f"/v2/repository/models/{model}/{order.lower()}", body, timeout_s=timeout_s)
            return
        import grpc  # takes longer to import than a server's watcher otherwise needs
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        address = f"{self.host}:{self.grpc_port}"
        request = getattr(service_pb2, f"RepositoryModel{order}Request")(model_name=model)
        for name, text in parameters.items():
            request.parameters[name].string_param = text
        with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), f"RepositoryModel{order}")
            try:
                call(request, timeout=timeout_s, metadata=((GRPC_KEY_HEADER, self.key),))
            except grpc.RpcError as error:
                raise _control_error(error, address) from error

    def loaded(self, timeout_s: float = 5.0) -> list[str]:
        """Models that are loaded, or still answer what they have while they are being unloaded.

        Raises:
            ControlError: no answer, or a refusal.
        """
        index = self._ask_json("POST", "/v2/repository/index", b"{}", timeout_s=timeout_s)
        return sorted({model["name"] for model in index if model.get("state", "UNAVAILABLE") != "UNAVAILABLE"})

    def _ask_json(self, method: str, path: str, *arguments: Any, **options: Any) -> Any:
        """As `_ask`, for an answer in JSON: a Triton that reloads a model now and then sends an empty body."""
        answer = self._ask(method, path, *arguments, **options)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ControlError(f"{path} answered no JSON, but {answer[:40]!r}") from error

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout_s: float = 5.0,
        port: int = 0,
    ) -> bytes:
        port = port or self.port
        connection = http.client.HTTPConnection(self.host, port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {KEY_HEADER: self.key, **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"no answer from {self.host}:{port}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ControlError(_reason(answer) or f"{path} answered {response.status}", response.status)
        return answer


def _control_error(error: Any, address: str) -> ControlError:
    """What Triton says of a failed load; without an answer, that there was none."""
    lines = (error.details() or "").strip().splitlines()
    if error.code().name in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return ControlError(f"no answer from {address}: {lines[0] if lines else error.code().name}")
    return ControlError(lines[0] if lines else error.code().name, HTTPStatus.BAD_REQUEST)


def _reason(answer: bytes) -> str:
    """The first line of Triton's own explanation."""
    try:
        problem: Any = json.loads(answer)
        return str(problem["error"]).strip().splitlines()[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return ""


def ask_reference_image(
    control: Control, repository: Repository, timeout_s: float = 5.0, priority: int = 0, *, every: bool = False
) -> None:
    """Have the served version classify one of its reference images, or `every` one, and judge the answer.

    Raises:
        ControlError: no answer in time, or a refusal.
        WrongAnswerError: other probabilities than the published ones.
        RepositoryError: the repository has no reference answer for the served version.
    """
    for _ in range(SWITCHES):
        version = max(control.versions("classify", timeout_s), key=int)
        references = repository.reference_answers(version)
        chosen = references if every else [random.choice(references)]
        if all(_answers(control, reference, timeout_s, priority) for reference in chosen):
            return
    raise ControlError("classify answers with another version each time")


def _answers(control: Control, reference: ReferenceAnswer, timeout_s: float, priority: int) -> bool:
    """Whether the reference's version answers, rightly; False where the callers have moved to another version."""
    version, probabilities = control.classify(reference.image, timeout_s, priority)
    if version == reference.version:
        judge(reference, probabilities)
    return version == reference.version


def check_health(
    control: Control, repository: Repository, timeout_s: float = 5.0, patience_s: float = PROGRESS_S
) -> bool:
    """Whether a server works: the rule that the watcher, `status` and a container's health check share.

    The reference image is asked at the priority that overtakes what waits. A wrong answer and an error are failures.
    A question that gets no answer in `timeout_s`, or is refused because a queue is full, is one only where a model
    of `classify` then executes nothing for `patience_s`: a server that makes progress is healthy, whoever calls it.

    Returns:
        True where the answer was right, False where the server was too busy to answer and makes progress.

    Raises:
        StalledError: no answer and no progress.
        ControlError: no connection, or an error for an answer.
        WrongAnswerError: a wrong answer.
    """
    before = control.executions()
    try:
        ask_reference_image(control, repository, timeout_s, priority=1)
        return True
    except ControlError as error:
        if error.status not in (0, HTTPStatus.SERVICE_UNAVAILABLE):
            raise
    _wait_for_progress(control, before, repository.classify_steps, patience_s)
    return False


def _wait_for_progress(control: Control, before: Counter[str], models: Sequence[str], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while idle := _idle(control, before, models):
        if time.monotonic() > deadline:
            raise StalledError(f"{', '.join(idle)} executed nothing for {patience_s:g} s of work")
        time.sleep(_PROGRESS_POLL_S)


def _idle(control: Control, before: Counter[str], models: Sequence[str]) -> list[str]:
    """The models whose count has not changed."""
    now = control.executions()
    return [model for model in models if now[model] == before[model]]


def ask_loaded_version(
    control: Control, repository: Repository, model: str, version: str, size: int, timeout_s: float = 5.0
) -> None:
    """Have a version that is loaded, but not served yet, classify the pixels of its reference images, size x size.

    Raises:
        as `ask_reference_image`.
    """
    for reference in repository.reference_answers(version):
        judge(reference, control.classify_pixels(model, version, decode(reference.image, size), timeout_s))


def judge(reference: ReferenceAnswer, probabilities: Sequence[float]) -> None:
    """Compare an answer with the published one.

    Raises:
        WrongAnswerError: a probability is too far away.
    """
    distance = reference.distance(probabilities)
    if not distance <= reference.tolerance:
        index = max(range(len(probabilities)), key=probabilities.__getitem__)
        raise WrongAnswerError(
            f"version {reference.version} says class {index} with {probabilities[index]:.2f} for its reference image, "
            f"which is {reference.index} ({reference.label}) with {reference.probabilities[reference.index]:.2f}; a "
            f"probability is {distance:.1g} off, and {reference.tolerance:.1g} is allowed: publish the model again"
        )


def drain(control: Control, repository: Repository, timeout_s: float) -> bool:
    """Have every request in flight answered and every new one refused; returns whether `timeout_s` was enough.

    Told to exit, Triton 2.51 goes on taking requests from open connections, and cuts them when its time is up.
    A model that is unloaded takes no new request and answers those that it has.
    """
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
