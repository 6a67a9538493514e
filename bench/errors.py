"""What can go wrong in a benchmark; each message names the thing and the next step, in one line."""


class BenchError(Exception):
    """A tool, a picture or a server that a stage needs is not there, or does not work."""
