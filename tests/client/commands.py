"""Running the command as people do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "client/classify.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *(os.fsdecode(os.fsencode(str(each))) for each in arguments)]


def classify(
    *arguments: object, cwd: Path | None = None, stdin: bytes = b"", timeout_s: float = 100
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, cwd=cwd, timeout=timeout_s, check=False
    )


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]
