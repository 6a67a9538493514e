"""The main job as a user runs it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class MainJob:
    """What `make demo` printed, and the folder that it made everything in."""

    output: str
    artifacts: Path

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.artifacts / "pictures").glob("*/*.jpeg"))

    @property
    def repository(self) -> Path:
        return self.artifacts / "model_repository"


def make(*arguments: str, artifacts: Path) -> subprocess.CompletedProcess[str]:
    """Run make as a user does, apart from the make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments, f"ARTIFACTS={artifacts}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
