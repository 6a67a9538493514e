"""Results as a table for people, and as one JSON file whose stages can be measured one at a time."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

HEADINGS = {"images_per_s": "images/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms"}
FILE_WIDTH = 120  # of a table that goes to no terminal
PACKAGES = ("nvidia-pytriton", "openvino", "pillow", "numpy")


def add(path: Path, stage: str, result: dict[str, Any]) -> None:
    """Put a stage's result into the file, in place of an earlier one; replaced in one step."""
    stages = json.loads(path.read_text())["stages"] if path.is_file() else {}
    stages[stage] = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **_machine(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps({"stages": stages}, indent=2) + "\n")
    new.replace(path)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "hardware": f"{model}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def show(stage: str, result: dict[str, Any]) -> None:
    """Print what a stage found."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    rows = result.get("summary", [])
    if rows:
        table = Table(title=stage, box=box.SIMPLE_HEAD)
        names = list(dict.fromkeys(name for row in rows for name in row))
        for name in names:
            table.add_column(HEADINGS.get(name, name), justify="left" if name == "target" else "right")
        for row in rows:
            table.add_row(*(_text(row.get(name, "")) for name in names))
        console.print(table)
    for name in [name for name in result if name not in ("rows", "summary", "ratios", "command", "images")]:
        console.print(f"{stage}: {name.replace('_', ' ')} {_text(result[name])}")
    for name, value in result.get("ratios", {}).items():
        console.print(f"{stage}: {_text(value)} {name}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return (
        f"{value:,.2f}"
        if isinstance(value, float) and abs(value) < 10
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )
