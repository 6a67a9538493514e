"""What a verification found: a table for people, and the same figures as JSON."""

import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alexnet_triton.export.numerics import Comparison, Rates, median_and_spread
from alexnet_triton.export.repository import write_text

TOOLS = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
HEADINGS = ("precision", "runtime", "top-1", "top-5", "same top-1", "difference", "MB", "img/s, 1", "img/s, 32")


def with_rates(rows: list[Comparison], rates: Rates) -> list[Comparison]:
    """Rows with the medians and spreads of their measured rates, where there are any."""
    filled = []
    for row in rows:
        measured = {
            batch: median_and_spread(values) for batch, values in rates.get((row.precision, row.runtime), {}).items()
        }
        medians = {batch: round(median, 1) for batch, (median, _) in measured.items()}
        spreads = {batch: round(spread, 3) for batch, (_, spread) in measured.items()}
        filled.append(replace(row, images_per_second=medians, spread=spreads))
    return filled


def build(rows: list[Comparison], arguments: list[str], **details: Any) -> dict[str, Any]:
    """The report as JSON values: rows, hardware, versions and the exact command."""
    return {
        "command": shlex.join(arguments),
        "hardware": hardware(),
        "versions": tool_versions(),
        "rows": [asdict(row) for row in rows],
        **details,
    }


def tool_versions() -> dict[str, str]:
    """Of Python and of what computes."""
    return {"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}}


def hardware() -> str:
    """The processor's name and the number of its cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def write(report: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(report, indent=2) + "\n")


def show(report: dict[str, Any], file: Any = None) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{report['rows'][0]['images']:,} test images, {report['hardware']}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("precision", "runtime") else "right", no_wrap=True)
    for row in report["rows"]:
        rates = {int(batch): rate for batch, rate in row["images_per_second"].items()}
        table.add_row(
            *(row["precision"], row["runtime"], f"{row['top1']:.4f}", f"{row['top5']:.4f}", f"{row['agreement']:.4f}"),
            *(f"{row['largest_difference']:.1e}", f"{row['megabytes']:.1f}"),
            *(f"{rates[batch]:.0f}" if batch in rates else "" for batch in (1, 32)),
        )
    stream = file or sys.stdout
    console = Console(file=stream, width=120 if not stream.isatty() else None)
    console.print(table)
    for name, reason in report.get("not_run", {}).items():
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)
    if "tensorrt" in report:
        console.print(_describe_plan(report["tensorrt"]), markup=False, soft_wrap=True)


def _describe_plan(plan: dict[str, Any] | str) -> str:
    """A plan is compared when it is built, with ONNX Runtime on the same graph; its sidecar tells of that."""
    if isinstance(plan, str):
        return f"TensorRT plan: {plan}"
    builder, verified = f"{plan['builder']['name']} {plan['builder']['version']}", plan["verified"]
    if not isinstance(verified, str):
        worst = max(verified["largest_difference"].values())
        verified = f"within {worst:.1e} of {verified['reference']} on {verified['images']} images"
    return f"{plan['file']}, {builder}, {plan['purpose']}: {verified}"
