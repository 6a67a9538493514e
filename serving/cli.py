"""The commands `serve`, `status` and `stop`: the server in the foreground, what runs, and ending it."""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alexnet_triton.common.command import Parser, complain, finish, port, positive_float
from alexnet_triton.serving.errors import ServingError
from alexnet_triton.serving.launch import GPU_START_TIMEOUT_S, START_TIMEOUT_S, Tls
from alexnet_triton.serving.repository import VARIANTS
from alexnet_triton.serving.runs import find_runs
from alexnet_triton.serving.server import Server
from alexnet_triton.serving.watch import MetricsServer, Watcher

SERVE = "alexnet-triton serve"


def serve(words: Sequence[str]) -> int:
    """Exit status: 0 stopped as asked, 1 could not start, 2 usage."""
    options = _serve_options(words)
    return finish(SERVE, lambda: _serve_until_stopped(options))


def status(words: Sequence[str]) -> int:
    """Exit status: 0 every server is healthy, 1 one is not or none runs, 2 usage."""
    Parser(prog="alexnet-triton status", description="This user's servers, and whether they are healthy.").parse_args(
        words
    )
    return finish("alexnet-triton status", _show_status)


def stop(words: Sequence[str]) -> int:
    """Exit status: 0 stopped, 1 nothing runs or it does not end, 2 usage."""
    parser = Parser(prog="alexnet-triton stop", description="End a server.")
    parser.add_argument("run", nargs="?", help="its name, as `status` prints it; not needed where only one runs")
    options = parser.parse_args(words)
    return finish("alexnet-triton stop", lambda: _stop(options.run))


def _serve_until_stopped(options: argparse.Namespace) -> None:
    """Ctrl-C and SIGTERM are the usual end; further signals do not disturb it."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        _serve(options)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _serve(options: argparse.Namespace) -> None:
    report = _reporter(options.log)
    server = Server(
        options.repository,
        variant=options.variant,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=0,  # callers are told the watcher's, which adds its own metrics to Triton's
        log=options.log,
        tritonserver=options.tritonserver,
        start_timeout_s=options.start_timeout,
        tls=_tls(options),
        event=report,
    )
    server.watched = True
    watcher = Watcher(server, report)
    metrics = MetricsServer(options.host, options.metrics_port, watcher)
    print(f"Starting Triton on {options.repository} ({options.variant}), log in {options.log}", flush=True)
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


def _tls(options: argparse.Namespace) -> Tls | None:
    if options.tls_cert and options.tls_key:
        return Tls(options.tls_cert, options.tls_key, options.tls_ca)
    if options.tls_cert or options.tls_key or options.tls_ca:
        raise ServingError("TLS needs both --tls-cert and --tls-key")
    return None


def _reporter(log: Path) -> Callable[..., None]:
    """A function that writes an event as a line of JSON to the log, and in short to stderr. It never raises."""

    def report(event: str, **details: Any) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **details})
        with suppress(OSError, ValueError), log.open("a") as file:  # a full disk stops no watcher
            file.write(line + "\n")
        with suppress(OSError, ValueError):  # nor does a closed terminal
            complain(SERVE, f"{event}: {details.get('reason', '')}")

    return report


def _show_status() -> int:
    health = [(run, run.is_healthy()) for run in find_runs()]
    for run, healthy in health:
        print(run.describe(healthy))
    if not health:
        print("nothing runs: start a server with `make serve`")
    return 0 if health and all(healthy for _, healthy in health) else 1


def _stop(name: str | None) -> None:
    runs = [run for run in find_runs() if not name or run.name == name]
    if not runs:
        raise ServingError(f"no server {name} runs" if name else "nothing runs")
    if len(runs) > 1:
        raise ServingError(f"several servers run, name one of them: {', '.join(run.name for run in runs)}")
    runs[0].stop()
    print(f"{runs[0].name} stopped")


def _serve_options(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog=SERVE, description="Serve a built repository with Triton, until Ctrl-C or SIGTERM.")
    parser.add_argument("--repository", type=Path, default=Path("artifacts/model_repository"))
    parser.add_argument("--variant", choices=VARIANTS, default="cpu", help="which configurations (default: cpu)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for name, default in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        variable = f"{name.upper()}_PORT"
        parser.add_argument(
            f"--{name}-port",
            type=port,
            default=os.environ.get(variable) or str(default),
            metavar="PORT",
            help=f"0: any free one (default: {variable}, else {default})",
        )
    parser.add_argument("--tritonserver", metavar="FILE", help="the program (default: TRITONSERVER, the wheel, PATH)")
    parser.add_argument("--log", type=Path, default=Path("artifacts/logs/tritonserver.log"), metavar="FILE")
    parser.add_argument(
        "--start-timeout",
        type=positive_float,
        metavar="SECONDS",
        help=f"until the first right answer (default: {START_TIMEOUT_S:g}, on a GPU {GPU_START_TIMEOUT_S:g})",
    )
    tls = parser.add_argument_group("TLS for gRPC, PEM files; HTTP stays plain")
    tls.add_argument("--tls-cert", type=Path, metavar="PEM", help="the server's certificate")
    tls.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    tls.add_argument("--tls-ca", type=Path, metavar="PEM", help="refuse callers without a certificate that this signed")
    return parser.parse_args(words)
