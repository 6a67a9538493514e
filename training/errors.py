"""What can go wrong in training. Each message is one line that names the thing and the next step."""

from alexnet_triton.common.command import INTERRUPTED, UserError


class TrainingError(UserError):
    """Base of the errors of this room."""


class DataError(TrainingError):
    """A data set is missing, damaged or laid out in another way."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged or of another network, or there is no space for it."""


class InterruptedRunError(TrainingError):
    """A run stopped because it was asked to, and saved its state."""

    exit_code = INTERRUPTED
