"""One measurement of load, by programs that cost the measured machine little: wrk over HTTP, h2load over gRPC."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

SCRIPT = Path(__file__).with_name("post.lua")
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}  # Debian's


@dataclass(frozen=True)
class Load:
    """What a load generator saw. The percentiles are of all that came back, refusals among them."""

    images_per_s: float  # answered, not refused
    p50_ms: float
    p99_ms: float
    refused: int = 0
    failed: int = 0  # connections cut, timeouts


def program(name: str) -> str:
    """Raises BenchError where it is not installed."""
    path = shutil.which(name)
    if path is None:
        raise BenchError(f"no {name}: install Debian's package {PACKAGES[name]}")
    return path


def http(url: str, connections: int, seconds: float, bodies: Path, headers: dict[str, str] | None = None) -> Load:
    """POST the JPEGs of `bodies` to `url`, each connection one after another (closed loop).

    Raises:
        BenchError: wrk is missing or ended badly.
    """
    arguments = [text for pair in (headers or {}).items() for text in pair]
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"]
    done = subprocess.run(
        [*command, "-s", str(SCRIPT), url, "--", str(bodies), *arguments], capture_output=True, text=True
    )
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        raise BenchError(f"wrk on {url}: {(done.stderr or done.stdout).strip() or 'no result'}")
    seen = json.loads(result[0].removeprefix("RESULT "))
    good = seen["answers"] - seen["refused"]
    return Load(good / seen["seconds"], seen["p50_ms"], seen["p99_ms"], seen["refused"], seen["failed"])
