"""What a verification found: a table for people, and the same figures as JSON."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from alexnet_triton.common.provenance import describe_command, describe_hardware, describe_versions
from alexnet_triton.export.numerics import Comparison

TOOLS = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
HEADINGS = (
    "precision",
    "runtime",
    "top-1",
    "top-5",
    "same top-1",
    "distance",
    "difference",
    "MB",
    "img/s, 1",
    "img/s, 32",
)


def build(rows: Sequence[Comparison], words: Sequence[str], **details: Any) -> dict[str, Any]:
    """The report as JSON values: rows, hardware, versions and the exact command, which is made of `words`."""
    return {
        "command": describe_command(words),
        "hardware": describe_hardware(),
        "versions": describe_versions(TOOLS),
        "rows": [asdict(row) for row in rows],
        **details,
    }


def show(report: dict[str, Any], file: Any = None) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{report['rows'][0]['images']:,} test images, {report['hardware']}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("precision", "runtime") else "right", no_wrap=True)
    for row in report["rows"]:
        rates = {int(batch): rate for batch, rate in row["images_per_second"].items()}
        table.add_row(
            *(row["precision"], row["runtime"], _fraction(row["top1"]), _fraction(row["top5"])),
            *(_fraction(row["agreement"]), _fraction(row["distance"])),
            *(f"{row['largest_difference']:.1e}", f"{row['megabytes']:.1f}"),
            *(f"{rates[batch]:.0f}" if batch in rates else "" for batch in (1, 32)),
        )
    stream = file or sys.stdout
    console = Console(file=stream, width=120 if not stream.isatty() else None)
    console.print(table)
    for name, reason in [*report.get("not_run", {}).items(), *report.get("left_out", {}).items()]:
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)
    if "tensorrt" in report:
        console.print(_describe_plan(report["tensorrt"]), markup=False, soft_wrap=True)


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _describe_plan(plan: dict[str, Any] | str) -> str:
    """A plan is compared with ONNX Runtime when it is built; its sidecar file has the outcome."""
    if isinstance(plan, str):
        return f"TensorRT plan: {plan}"
    builder = f"{plan['builder']['name']} {plan['builder']['version']}"
    return f"{plan['file']}, {builder}, {plan['purpose']}: {describe_check(plan['verified'])}"


def describe_check(verified: dict[str, Any] | str) -> str:
    """How near a plan's answers came to its reference's, or why it was not run."""
    if isinstance(verified, str):
        return verified
    worst = max(verified["largest_difference"].values())
    return f"within {worst:.1e} of {verified['reference']} on {verified['images']} images"
