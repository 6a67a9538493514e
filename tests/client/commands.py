"""Running the command as people do."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from alexnet_triton.client.cli import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "client/classify.py"
STARTER = multiprocessing.get_context("forkserver")
# Not grpc: how much it says is settled when it is loaded, and the command sets that.
STARTER.set_forkserver_preload(["alexnet_triton.client.run", "alexnet_triton.client.http_transport"])


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *words(*arguments)]


def words(*arguments: object) -> list[str]:
    return [os.fsdecode(os.fsencode(str(each))) for each in arguments]


def classify(
    *arguments: object, cwd: Path | None = None, stdin: bytes = b"", timeout_s: float = 100
) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own, forked from one that has loaded its modules: loading takes most of its time.

    test_contract.py, test_start.py and whoever uses `command` start the script itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_bytes(stdin)
        asked = words(*arguments)
        process = STARTER.Process(target=run, args=(asked, cwd or Path.cwd(), dict(os.environ), streams))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(asked, timeout_s)
        return subprocess.CompletedProcess(asked, process.exitcode, *(path.read_bytes() for path in streams[1:]))


def run(asked: list[str], cwd: Path, environment: dict[str, str], streams: list[Path]) -> None:
    """The command in this process, with its own folder, environment and streams."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has closed the one before
    sys.exit(main(asked))


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]
