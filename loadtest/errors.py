"""What can go wrong in a load test. Each message names the thing and the next step, in one line.

LoadTestError
  +-- SettingError      a rate, a folder, an objective that cannot be; nothing was sent
  +-- TargetError       the server is not there, is not the one meant, or changed under the test
  +-- ResultError       a saved result that cannot be read or compared
  +-- EndedError        ended by Ctrl-C before there was anything to save
"""


class LoadTestError(Exception):
    """Base of all. `exit_code` is the command's."""

    exit_code = 2


class SettingError(LoadTestError):
    """What was asked for cannot be done."""


class TargetError(LoadTestError):
    """The server cannot be tested."""

    exit_code = 3


class ResultError(LoadTestError):
    """A saved result is missing, unreadable, or of another kind."""


class EndedError(LoadTestError):
    """Ended by Ctrl-C before there was anything to save."""

    exit_code = 130
