"""Recorded arrivals: the gateway's access log, and the open loop that sends at its moments once more.

nginx writes a line when a request ends. Its first byte came `seconds` (nginx's `$request_time`) before that, so the
lines are not in the order of arrival.
"""

import gzip
import json
import re
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.loadtest.workload import MOST_PER_S, check_times

INFER = re.compile(r"/v2/models/[^/]+(/versions/\d+)?/infer|/inference\.GRPCInferenceService/ModelInfer")
NO_ROOM, GRPC_NO_ROOM = (429, 503), ("8", "14")  # the gateway's refusals of requests that were right
MOST_BYTES, LONGEST_LINE = 2 << 30, 1 << 16
MOST_REPLAYED = 5_000_000
MOST_SPEED = 1000.0
DAMAGE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # what parsing raises


class LoggedRequest(NamedTuple):
    """One request of the log. `ended_s` is seconds since 1970; `exact` says that it has milliseconds."""

    ended_s: float
    exact: bool
    seconds: float
    bytes_in: int


WIDTH = len(LoggedRequest._fields)


@dataclass(frozen=True, eq=False)
class Recording:
    """The requests of a log.

    Attributes:
        arrivals_s: from the first arrival, ascending, float64 [requests].
        bytes_in: length of each, headers included, int64 [requests].
        damaged: lines that are not the gateway's, and are left out; the first is line `first_damaged`.
    """

    arrivals_s: NDArray[np.float64]
    bytes_in: NDArray[np.int64]
    lines: int
    damaged: int
    first_damaged: int


@dataclass(frozen=True, eq=False)
class Replay:
    """An open loop at recorded moments.

    Attributes:
        speed: how many times as fast as recorded.
        duration_s: the measured time, behind the recording's first `warmup_s`, both at this speed.
        times_s: intended moments from the start of the warm-up, ascending, float64 [requests].
        bytes_in: length of each recorded request, int64 [requests].
        damaged: lines of the log that were left out.
    """

    file: str
    speed: float
    duration_s: float
    warmup_s: float
    damaged: int
    times_s: NDArray[np.float64] = field(repr=False)
    bytes_in: NDArray[np.int64] = field(repr=False)

    @property
    def count(self) -> int:
        """Requests of the measured time."""
        return int(np.count_nonzero(self.times_s >= self.warmup_s))

    @property
    def rate_per_s(self) -> float:
        """Mean rate of the measured time."""
        return self.count / self.duration_s

    def describe(self) -> dict[str, object]:
        """It as plain values, without the single moments."""
        names = ("file", "speed", "duration_s", "warmup_s", "damaged", "count", "rate_per_s")
        return {name: getattr(self, name) for name in names}


def plan_replay(recording: Recording, file: Path, speed: float, duration_s: float | None, warmup_s: float) -> Replay:
    """The load of a recording, or of its first `warmup_s + duration_s` at this speed.

    Raises:
        SettingError: a speed or times that cannot be.
    """
    if not 0 < speed <= MOST_SPEED:
        raise SettingError(f"--speed {speed:g}: give more than 0 and at most {MOST_SPEED:,.0f}")
    times_s = recording.arrivals_s / speed
    whole_s = _length_s(times_s)
    end_s = whole_s if duration_s is None else min(whole_s, warmup_s + duration_s)
    if end_s <= warmup_s:
        raise SettingError(f"--replay {file}: its {whole_s:,.1f} s are all in the warm-up; give a shorter --warmup")
    check_times(end_s - warmup_s, warmup_s)
    kept = times_s < end_s
    load = Replay(
        str(file), speed, end_s - warmup_s, warmup_s, recording.damaged, times_s[kept], recording.bytes_in[kept]
    )
    if load.rate_per_s > MOST_PER_S:
        raise SettingError(f"--speed {speed:g}: {load.rate_per_s:,.0f} requests a second; at most {MOST_PER_S:,.0f}")
    return load


def _length_s(times_s: NDArray[np.float64]) -> float:
    """To the end of the mean gap behind the last request, so that the rate is that of the gaps; a second at least."""
    count = len(times_s)
    return max(1.0, float(times_s[-1]) * count / max(1, count - 1))


def read_log(file: Path) -> Recording:
    """The inference requests of the gateway's log, HTTP's and gRPC's, also of one that gzip compressed.

    What the gateway refused as wrong (a key, a path, a body) is left out, as it asks no server; what it refused for
    want of room counts.

    Raises:
        SettingError: the file cannot be read, is too large, or has no such request.
    """
    values = array("d")  # of each request, one after another: millions of objects would take a gigabyte
    lines = damaged = first_damaged = 0
    for line in _lines(file):
        lines += 1
        try:
            found = parse_line(line)
        except DAMAGE:
            damaged, first_damaged = damaged + 1, first_damaged or lines
            continue
        values.extend(found or ())
        if len(values) > WIDTH * MOST_REPLAYED:
            raise SettingError(f"--replay {file}: more than {MOST_REPLAYED:,} requests; give a part of it")
    if not values:
        raise SettingError(f"--replay {file}: {_nothing(lines, damaged)}; give the log that GATEWAY_LOG names")
    ended_s, exact, seconds, bytes_in = np.array(values).reshape(-1, WIDTH).T
    arrivals_s = _moments(ended_s, exact.astype(bool)) - seconds
    order = np.argsort(arrivals_s, kind="stable")
    arrivals_s = arrivals_s[order] - arrivals_s[order[0]]
    return Recording(arrivals_s, bytes_in[order].astype(np.int64), lines, damaged, first_damaged)


def _nothing(lines: int, damaged: int) -> str:
    if damaged:
        return f"none of its {lines:,} lines is an inference request, and {damaged:,} are not the gateway's"
    return f"no inference request in its {lines:,} lines"


def _lines(file: Path) -> Iterator[bytes]:
    """A longer line than the gateway writes comes in pieces, which are damaged lines."""
    read = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            while line := opened.readline(LONGEST_LINE):
                read += len(line)
                if read > MOST_BYTES:
                    raise SettingError(f"--replay {file}: more than {MOST_BYTES >> 30} GiB; give a part of it")
                yield line
    except (OSError, EOFError, zlib.error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SettingError(f"--replay {file}: {reason}; give the log that GATEWAY_LOG names") from None


def parse_line(line: bytes) -> LoggedRequest | None:
    """The request of a line, or None where it is not one that a server would have to answer.

    Raises:
        one of DAMAGE: it is not the gateway's.
    """
    entry = json.loads(line)
    ended_s, exact = _ended(entry)
    seconds, bytes_in = float(entry["seconds"]), int(entry["bytes_in"])
    if not (0 <= ended_s < 1e11 and 0 <= seconds < 1e6 and 0 <= bytes_in < 1 << 50):
        raise ValueError("a time or length that cannot be")
    if entry["method"] != "POST" or not INFER.fullmatch(entry["path"]):
        return None
    if not entry["triton"] and entry["status"] not in NO_ROOM and entry["grpc_status"] not in GRPC_NO_ROOM:
        return None
    return LoggedRequest(ended_s, exact, seconds, bytes_in)


def _ended(entry: dict[str, object]) -> tuple[float, bool]:
    """`unix_seconds` has milliseconds; logs of before have `time` alone, in whole seconds."""
    if "unix_seconds" in entry:
        return float(str(entry["unix_seconds"])), True
    return datetime.fromisoformat(str(entry["time"])).timestamp(), False


def _moments(ended_s: NDArray[np.float64], exact: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Those in whole seconds are spread evenly over their second, in the order of the lines."""
    whole = np.flatnonzero(~exact)
    order = whole[np.argsort(ended_s[whole], kind="stable")]
    _, first, counts = np.unique(ended_s[order], return_index=True, return_counts=True)
    of_second = np.repeat(counts, counts)
    places = np.arange(len(order)) - np.repeat(first, counts)
    spread = ended_s.copy()
    spread[order] += (places + 0.5) / of_second
    return spread
