"""What can go wrong in training, as a user meets it: each message names the thing and the next step.

TrainingError
+-- DataError         a data set that is missing, damaged or laid out otherwise
+-- CheckpointError   a checkpoint that is missing, damaged, of another network or cannot be written
+-- InterruptedRunError  a run that was asked to stop, and did so with a checkpoint
"""


class TrainingError(Exception):
    """Base of all errors that a training command reports in one line."""


class DataError(TrainingError):
    """A data set that is missing, damaged or laid out otherwise."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged, of another network, or cannot be written."""


class InterruptedRunError(TrainingError):
    """A run that was asked to stop, and did so with a checkpoint; its exit code is 130."""
