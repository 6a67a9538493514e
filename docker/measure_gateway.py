"""What the gateway costs, and what slow callers cost the others. Both sides in turn on one machine, in the same run.

    python docker/measure_gateway.py cost --images artifacts/pictures
    python docker/measure_gateway.py slow --images artifacts/pictures --rate 60

`cost`: images a second at 64 connections, asking Triton directly (http, no TLS) and through the gateway (https, a
key); needs `wrk`. `slow`: p99 of callers at a fixed rate through the gateway, alone and beside 1,000 connections of
which half say nothing and half send one byte of their headers a second. The generator runs on the same cores.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from gateway_cost import measure_cost
from gateway_slow import measure_slow
from measured_gateway import ROOT, MeasureError, Settings, running_gateway

from serving import Server
from serving.errors import ServingError


def measure(what: str, settings: Settings, port: int) -> dict[str, Any]:
    """Start Triton and the gateway, measure, stop both."""
    measures = {"cost": measure_cost, "slow": measure_slow}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(settings.repository, http_port=0, grpc_port=0, metrics_port=0) as server:
            secrets = folder / "secrets"
            secrets.mkdir()
            with running_gateway(server, secrets, port) as gateway:
                return measures[what](server, gateway, folder, settings)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 measured, 1 could not be, 2 usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "slow"))
    parser.add_argument("--repository", type=Path, default=ROOT / "artifacts/model_repository")
    parser.add_argument("--images", type=Path, default=ROOT / "artifacts/pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of each side of a round (default %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="of `cost` (default %(default)s)")
    parser.add_argument("--rate", type=float, default=50, help="of `slow`: requests a second (default %(default)s)")
    parser.add_argument("--port", type=int, default=8444, help="of the gateway while it is measured")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    if options.what == "cost" and shutil.which("wrk") is None:
        parser.error("no wrk: apt install wrk")
    settings = Settings(
        options.repository, options.images.resolve(), options.rounds, options.seconds, options.connections, options.rate
    )
    try:
        figures = measure(options.what, settings, options.port)
    except (MeasureError, ServingError) as error:
        print(f"measure_gateway: {error}", file=sys.stderr)
        return 1
    command = " ".join(["python docker/measure_gateway.py", *(sys.argv[1:] if arguments is None else arguments)])
    machine = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    result = {"command": command, "machine": machine, "settings": asdict(settings), **figures}
    text = json.dumps(result, indent=2, default=str) + "\n"
    if options.json:
        options.json.write_text(text)
    print(text, end="")
    return 0


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
