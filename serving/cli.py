"""python -m serving run | status | stop: the server in the foreground, what runs, and ending it."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alexnet_triton.serving.errors import ServingError
from alexnet_triton.serving.launch import Tls
from alexnet_triton.serving.repository import VARIANTS
from alexnet_triton.serving.runs import RunningServer, find_runs
from alexnet_triton.serving.server import Server
from alexnet_triton.serving.watch import MetricsServer, Watcher


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or nothing runs, 2 usage."""
    arguments = _parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {"run": _run, "status": _status, "stop": _stop}
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return commands[arguments.command](arguments)
    except ServingError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def serve(words: Sequence[str]) -> int:
    return main(["run", *words])


def status(words: Sequence[str]) -> int:
    return main(["status", *words])


def stop(words: Sequence[str]) -> int:
    return main(["stop", *words])


def _run(arguments: argparse.Namespace) -> int:
    server = Server(
        arguments.repository,
        arguments.variant,
        arguments.host,
        arguments.http_port,
        arguments.grpc_port,
        metrics_port=0,  # what is told to people is the watcher's, which adds Triton's
        log=arguments.log,
        tritonserver=arguments.tritonserver,
        tls=_tls(arguments),
    )
    server.watched = True
    watcher = Watcher(server, _reporter(arguments.log))
    metrics = MetricsServer(arguments.host, arguments.metrics_port, watcher)
    print(f"Starting Triton on {arguments.repository} ({arguments.variant}), log in {arguments.log}", flush=True)
    try:
        with server:
            scheme = "grpcs" if server.config.tls else "grpc"
            print(
                f"Ready: http://{server.http_address}  {scheme}://{server.grpc_address}  "
                f"metrics http://{metrics.address}/metrics  (Ctrl-C stops it)",
                flush=True,
            )
            watcher.run()
    finally:
        metrics.close()
    return 0


def _tls(arguments: argparse.Namespace) -> Tls | None:
    if arguments.tls_cert and arguments.tls_key:
        return Tls(arguments.tls_cert, arguments.tls_key, arguments.tls_ca)
    if arguments.tls_cert or arguments.tls_key or arguments.tls_ca:
        raise ServingError("TLS needs both --tls-cert and --tls-key")
    return None


def _reporter(log: Path) -> Callable[..., None]:
    """Each event as a line of JSON in the log, and shortened on the terminal."""

    def report(event: str, **details: Any) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **details})
        with log.open("a") as file:
            file.write(line + "\n")
        print(f"serving: {event}: {details.get('reason', '')}", file=sys.stderr, flush=True)

    return report


def _status(arguments: argparse.Namespace) -> int:
    runs = find_runs()
    for run in runs:
        print(run.describe())
    if not runs:
        print("nothing runs: start a server with `make serve`")
    return 0 if runs else 1


def _stop(arguments: argparse.Namespace) -> int:
    runs = [run for run in find_runs() if not arguments.run or run.name == arguments.run]
    if not runs:
        raise ServingError(f"no server {arguments.run} runs" if arguments.run else "nothing runs")
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs)
        raise ServingError(f"several servers run, name one of them: {names}")
    _stop_run(runs[0])
    return 0


def _stop_run(run: RunningServer) -> None:
    run.stop()
    print(f"{run.name} stopped")


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
    tls = run.add_argument_group("TLS for gRPC, PEM files; HTTP stays plain")
    tls.add_argument("--tls-cert", type=Path, metavar="PEM", help="the server's certificate")
    tls.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    tls.add_argument("--tls-ca", type=Path, metavar="PEM", help="refuse callers without a certificate that this signed")
    commands.add_parser("status", help="the servers that run, and whether they are well")
    stop = commands.add_parser("stop", help="end a server")
    stop.add_argument("run", nargs="?", help="its name, as `status` gives it; not needed where only one runs")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)
