"""Which precisions of a verified network may be published."""

import json
from pathlib import Path
from typing import Any

from export.errors import AccuracyError, PublishError
from export.files import sha256

# The most top-1 that may be lost against fp32, in points.
ALLOWED_LOSS = {"fp32": 0.0, "fp16": 0.2, "bf16": 0.2, "int8": 0.5}
REPORT = "report.json"


def read_report(model: Path) -> dict[str, Any] | None:
    """The verification report beside a model, where there is one.

    Raises:
        PublishError: it is about other files than those that lie there now.
    """
    path = model.with_name(REPORT)
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
        files: dict[str, str] = report["sha256"]
    except (ValueError, KeyError) as error:
        raise PublishError(f"{path}: damaged ({error}); verify again: python -m export all") from error
    for name, digest in files.items():
        file = model.with_name(name)
        if not file.is_file() or sha256(file) != digest:
            raise PublishError(f"{file}: not the file that {path} is about; verify again: python -m export all")
    return report


def losses(report: dict[str, Any]) -> dict[str, float]:
    """Points of top-1 that each served precision loses against fp32 in the same report."""
    top1 = {row["precision"]: row["top1"] for row in report["rows"]}
    return {precision: round(100 * (top1["fp32"] - value), 3) for precision, value in top1.items()}


def check(report: dict[str, Any], force: bool) -> list[str]:
    """The precisions that lose too much; without `force` there are none.

    Raises:
        AccuracyError: a precision loses more than `ALLOWED_LOSS`.
    """
    failing = {p: loss for p, loss in losses(report).items() if loss > ALLOWED_LOSS[p]}
    if failing and not force:
        named = ", ".join(
            f"{precision} loses {loss:.2f} points of top-1, more than the {ALLOWED_LOSS[precision]} allowed"
            for precision, loss in failing.items()
        )
        raise AccuracyError(f"not published: {named}; calibrate better, or publish all the same with --force")
    return sorted(failing)
