"""What can go wrong in serving. Each message names the thing and the next step, in one line."""

from alexnet_triton.common.command import UserError


class ServingError(UserError):
    """Base of this room's errors."""


class InstallationError(ServingError):
    """No usable tritonserver."""


class RepositoryError(ServingError):
    """The built repository is missing, empty, unreadable or broken."""


class PortTakenError(ServingError):
    """Another program listens on a port that was asked for."""

    def __init__(self, host: str, port: int, variable: str) -> None:
        super().__init__(f"port {port} on {host} is taken: stop what listens there, or set {variable} to another port")
        self.port = port


class StartError(ServingError):
    """Tritonserver ended by itself, or gave no right answer in time."""


class BackendAbortError(StartError):
    """The Python backend aborted while it started the stubs; another start may do."""


class ControlError(ServingError):
    """A running server refused a request, or did not answer it. `status` is HTTP's, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class StalledError(ControlError):
    """A running server has work, and executes nothing."""


class WrongAnswerError(ServingError):
    """A running server gave the reference image another answer than the published one."""


class EngineError(ServingError):
    """OpenVINO, TensorRT or CUDA cannot run the network as configured."""
