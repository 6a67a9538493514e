"""What can go wrong in a load test. Each message names the thing and the next step, in one line."""

from alexnet_triton.common.command import UserError


class LoadTestError(UserError):
    """Base of all."""

    exit_code = 2


class SettingError(LoadTestError):
    """What was asked for cannot be done: an impossible rate, folder or objective; nothing was sent."""


class TargetError(LoadTestError):
    """The server cannot be tested: it is not there, is another one, or changed during the test."""

    exit_code = 3


class ResultError(LoadTestError):
    """A saved result is missing, unreadable, or of another kind."""


class EndedError(LoadTestError):
    """Ended by Ctrl-C before there was anything to save."""

    exit_code = 130
