"""What can go wrong in training, as a user meets it: each message names the thing and the next step.

TrainingError
+-- DataError         a data set that is missing, damaged or laid out otherwise
+-- CheckpointError   a checkpoint that is missing, damaged or of another network
"""


class TrainingError(Exception):
    """Base of all errors that a training command reports in one line."""


class DataError(TrainingError):
    """A data set that is missing, damaged or laid out otherwise."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged or of another network."""
