"""What can go wrong between a checkpoint and a served model; each message names the file and the next step.

ExportError
+-- ModelError      an ONNX file or label list that cannot be used
+-- AccuracyError   a candidate that answers otherwise than its reference
+-- PublishError    a repository that cannot be written or served
"""


class ExportError(Exception):
    """Base of all errors that an export command reports in one line."""


class ModelError(ExportError):
    """An ONNX file or a label list that cannot be used."""


class AccuracyError(ExportError):
    """A candidate that answers otherwise than its reference."""


class PublishError(ExportError):
    """A repository that cannot be written or served."""
