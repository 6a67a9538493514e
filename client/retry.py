"""When to send again, and how long to wait before it."""

import random
import time

from client.errors import ServerError


class Deadline:
    """A moment on the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self.at_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds until then, never below 0."""
        return max(0.0, self.at_s - time.monotonic())


class RetryBudget:
    """Repeats that all requests share, so that a server in trouble is not asked many times over.

    A bucket of tokens: a request puts a tenth of one in, a repeat takes one out
    (https://sre.google/sre-book/addressing-cascading-failures/, "retry budget").
    """

    def __init__(self, capacity: float, deposit: float = 0.1) -> None:
        self.tokens = self._capacity = capacity
        self._deposit = deposit

    def earn(self) -> None:
        """A request was sent."""
        self.tokens = min(self._capacity, self.tokens + self._deposit)

    def spend(self) -> bool:
        """Whether one more repeat may be sent."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def pause_s(attempt: int, base_s: float, cap_s: float, error: ServerError | None = None) -> float:
    """Seconds to wait after attempt 0, 1, ...: full jitter under a doubling cap, and what the server asked for.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    asked_s = getattr(error, "retry_after_s", None) or 0.0
    return asked_s + random.uniform(0, min(cap_s, base_s * 2**attempt))
