"""Starting the stub, and running the command against it as people do."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Running:
    """A stub that runs."""

    url: str
    process: "subprocess.Popen[str]"

    def counts(self) -> dict[str, Any]:
        """Requests that it has had, wrong answers that it has given, and by how much it was late at worst."""
        with urllib.request.urlopen(f"{self.url}/stub") as response:
            return json.load(response)


@contextmanager
def stub(*options: object) -> Iterator[Running]:
    """A stub server with these options."""
    command = [sys.executable, str(ROOT / "tests/loadtest/stub.py"), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Running(f"http://127.0.0.1:{process.stdout.readline().strip()}", process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Done:
    """A command that has ended, and its result."""

    code: int
    out: str
    err: str
    folder: Path
    late_ms: float = 0.0

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def measured(self) -> dict[str, Any]:
        return self.result["measured"]


def command(name: str, *options: object, output: Path) -> list[str]:
    return [sys.executable, "-m", "alexnet_triton", "loadtest", name, *map(str, options), "--output", str(output)]


def loadtest(name: str, *options: object, output: Path, timeout_s: float = 100) -> Done:
    """Run `alexnet-triton loadtest NAME OPTIONS...`."""
    done = subprocess.run(
        command(name, *options, output=output), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr, output)
