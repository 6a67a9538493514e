"""Results of loads: whether they meet service level objectives (`p99=100ms,errors=0.1%,rate=200`), and their folders.

A folder a result, with `result.json` in it, and the report beside it.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.errors import ResultError, SettingError
from alexnet_triton.loadtest.recorder import LATENCIES

UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
NAMES = (*LATENCIES, "errors", "rate", "growth")
EXAMPLE = "give p50, p90, p99, p99.9, max or mean, errors, growth, rate: p99=100ms,errors=0.1%,rate=200"


@dataclass(frozen=True)
class Objective:
    """One limit: milliseconds, parts of 1, or requests a second. `rate` is a least value, the others are most."""

    name: str
    limit: float

    def met(self, measured: float) -> bool | None:
        """Whether a measured value keeps it; None of NaN, where nothing is known."""
        if math.isnan(measured):
            return None
        return measured >= self.limit if self.name == "rate" else measured <= self.limit

    def show(self, value: float) -> str:
        """A value of its kind in words."""
        if math.isnan(value):
            return "not known"
        if self.name == "rate":
            return f"{value:,.1f}/s"
        if self.name in ("errors", "growth"):
            return f"{value:.3%}"
        return f"{value:,.2f} ms"


@dataclass(frozen=True)
class Judged:
    """An objective beside what was measured; `met` is None where nothing is known."""

    name: str
    limit: str
    measured: str
    met: bool | None


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Read `--slo`.

    Raises:
        SettingError: an unknown name, unit or number.
    """
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(part: str) -> Objective:
    name, equals, value = part.partition("=")
    if not equals or name not in NAMES:
        raise SettingError(f"--slo {part!r}: {EXAMPLE}")
    if name in LATENCIES:
        unit = next((each for each in ("us", "ms", "s") if value.endswith(each)), "")
        factor, digits = UNITS_MS.get(unit, 0.0), value.removesuffix(unit)
    else:
        factor, digits = (0.01, value.removesuffix("%")) if value.endswith("%") else (1.0, value)
    try:
        limit = float(digits) * factor
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf or (name in LATENCIES and not factor):
        raise SettingError(f"--slo {part!r}: {EXAMPLE}")
    return Objective(name, limit)


def judge(objectives: tuple[Objective, ...], measured: dict[str, float]) -> list[Judged]:
    """Each objective beside the value of its name."""
    return [
        Judged(each.name, each.show(each.limit), each.show(measured[each.name]), each.met(measured[each.name]))
        for each in objectives
    ]


def verdict(judged: Sequence[Judged], limits: Sequence[str]) -> bool | None:
    """Whether every objective is met; None where one is unknown, or missed while the generator had `limits`.

    What the generator held up may be late, but it is not wrong: missed `errors` are the server's.
    """
    missed = {each.name for each in judged if each.met is False}
    if "errors" in missed or (missed and not limits):
        return False
    return None if missed or any(each.met is None for each in judged) else True


OK, MISSED, UNDECIDED, INTERRUPTED = 0, 1, 4, 130  # exit codes
CODES = {True: OK, False: MISSED, None: UNDECIDED}  # of a verdict
FORMAT = 1
NAME = "result.json"
KINDS = ("run", "sweep", "compare", "mlperf")
Json = dict[str, Any]


def describe_target(target: Target, arguments: argparse.Namespace) -> Json:
    """What was asked."""
    return {
        "url": str(target.address),
        "model": target.model,
        "version": target.version,
        "steps": target.steps,
        "sends": target.signature.kind,
        "batch": arguments.batch,
        "priorities": arguments.priorities,
        "images": str(arguments.images),
        "seed": arguments.seed,
    }


def prepare_folder(folder: Path) -> Path:
    """Make a folder for results, before anything is measured.

    Raises:
        SettingError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingError(f"--output {folder}: {reason}; name another folder") from None
    return folder


def read_result(path: Path) -> Json:
    """A result, from its folder or its file.

    Raises:
        ResultError: it is missing, or not a result of this program.
    """
    file = path / NAME if path.is_dir() else path
    try:
        result = json.loads(file.read_text())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ResultError(f"no result in {file}: {reason}; name a folder of --output") from None
    except ValueError:
        raise ResultError(f"{file} is no JSON: measure it again") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT or result.get("kind") not in KINDS:
        raise ResultError(f"{file} is no result of this version: measure it again")
    return result
