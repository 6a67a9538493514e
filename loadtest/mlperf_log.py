"""What LoadGen wrote: its summary, and the answers of its accuracy run."""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import ResultError

SUMMARY, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
LINE = re.compile(r"^\s*([^:]+?)\s*:\s*(.+?)\s*$", re.MULTILINE)
RATES = {"Offline": "Samples per second", "Server": "Completed samples per second"}


@dataclass(frozen=True)
class Summary:
    """LoadGen's figures and its judgement.

    Attributes:
        rate_per_s: samples a second; None of SingleStream, whose figure is a latency.
        latency_ms: of Server the 99th, of SingleStream the 90th percentile; None of Offline.
    """

    valid: bool
    rate_per_s: float | None
    latency_ms: float | None
    lines: dict[str, str]


def read_summary(folder: Path, scenario: str) -> Summary:
    """LoadGen's summary.

    Raises:
        ResultError: there is none.
    """
    try:
        lines = dict(LINE.findall((folder / SUMMARY).read_text()))
    except OSError as error:
        raise ResultError(f"no {folder / SUMMARY}: {error.strerror}; LoadGen did not finish") from None
    rate = lines.get(RATES.get(scenario, ""))
    quantile = {"Server": "99.00", "SingleStream": "90.00"}.get(scenario)
    latency = lines.get(f"{quantile} percentile latency (ns)")
    return Summary(
        lines.get("Result is") == "VALID",
        float(rate) if rate else None,
        float(latency) / 1e6 if latency else None,
        lines,
    )


def accuracy(folder: Path, paths: Sequence[Path], labels: Mapping[int, str]) -> float:
    """Part of the images whose answer is their folder's name, from LoadGen's log of answers.

    Raises:
        ResultError: the log cannot be read.
    """
    try:
        entries = json.loads((folder / ACCURACY).read_text())
        answers = {
            each["qsl_idx"]: struct.unpack("<i", bytes.fromhex(each["data"]))[0] for each in entries if each["data"]
        }
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ResultError(f"{folder / ACCURACY}: {error}") from None
    right = sum(labels.get(index) == paths[number].parent.name for number, index in answers.items())
    return right / len(paths)
