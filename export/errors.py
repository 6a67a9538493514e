"""What can go wrong between a checkpoint and a served model; each message names the file and the next step."""

from alexnet_triton.common.command import UserError


class ExportError(UserError):
    """Base of this room's errors."""


class ModelError(ExportError):
    """An ONNX file or a list of labels that cannot be used."""


class AccuracyError(ExportError):
    """A network whose answers differ too much from its reference's."""


class NotDecidedError(ExportError):
    """Nothing was compared, or too little to say."""

    exit_code = 4


class PublishError(ExportError):
    """A repository that cannot be written or served."""
