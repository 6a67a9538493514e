"""python -m serving run: the server in the foreground until Ctrl-C or SIGTERM."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.errors import ServingError, StartError
from serving.repository import VARIANTS
from serving.server import Server


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or ended by itself, 2 usage."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(arguments)
    except ServingError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: argparse.Namespace) -> int:
    server = Server(
        arguments.repository,
        arguments.variant,
        arguments.host,
        arguments.http_port,
        arguments.grpc_port,
        arguments.metrics_port,
        log=arguments.log,
        tritonserver=arguments.tritonserver,
    )
    print(f"Starting Triton on {arguments.repository} ({arguments.variant}), log in {arguments.log}", flush=True)
    with server:
        print(
            f"Ready: http://{server.http_address}  grpc://{server.grpc_address}  "
            f"metrics http://{server.metrics_address}/metrics  (Ctrl-C stops it)",
            flush=True,
        )
        while not server.wait(3600.0):
            pass
        raise StartError(f"tritonserver ended by itself: see {arguments.log}")


def _interrupt(signum: int, frame: object) -> None:
    """SIGTERM ends the program as Ctrl-C does; further ones do not disturb the ending."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve a built repository with Triton.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the server in the foreground, until Ctrl-C or SIGTERM")
    run.add_argument("--repository", type=Path, default=Path("artifacts/model_repository"))
    run.add_argument("--variant", choices=sorted(VARIANTS), default="cpu", help="which configurations (default: cpu)")
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        variable = f"{name.upper()}_PORT"
        run.add_argument(
            f"--{name}-port",
            type=_port,
            default=os.environ.get(variable) or str(port),
            metavar="PORT",
            help=f"0: any free one (default: {variable}, else {port})",
        )
    run.add_argument("--tritonserver", metavar="FILE", help="the program (default: TRITONSERVER, the wheel, PATH)")
    run.add_argument("--log", type=Path, default=Path("artifacts/logs/tritonserver.log"), metavar="FILE")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)
