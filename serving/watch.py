"""The watcher: it heals models whose stubs died, restarts a server that died, and serves both's metrics."""

import os
import select
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alexnet_triton.serving.control import PROGRESS_S
from alexnet_triton.serving.errors import ControlError, PortTakenError, ServingError, StalledError
from alexnet_triton.serving.server import Event, Server


@dataclass(frozen=True)
class WatchConfig:
    """How often the watcher asks, how many failures in a row lead to a restart, and how restarts are spaced."""

    interval_s: float = 2.0
    confirm_s: float = 0.2
    answer_timeout_s: float = 2.0
    patience_s: float = PROGRESS_S
    sweep_s: float = 5.0  # for what a dead server leaves behind
    failures: int = 3
    heals: int = 4  # models that are replaced before one right answer
    first_backoff_s: float = 0.25
    max_backoff_s: float = 30.0
    quiet_s: float = 60.0  # healthy for so long, and the next restart waits for nothing again


class Watcher:
    """Watches one server. `run` returns once `stopped` is set; each event is counted and goes to `event`."""

    def __init__(self, server: Server, event: Event, config: WatchConfig | None = None) -> None:
        self.server = server
        self.config = config or WatchConfig()
        self.counts: Counter[str] = Counter(heals=0, restarts=0)
        self.healthy = False  # until the server's first right answer
        self.stopped = False
        self._event = event
        self._failures = 0
        self._backoff_s = 0.0
        self._last_restart = time.monotonic()

    def run(self) -> None:
        """Watch a started server, which has answered rightly once, until `stopped`."""
        self.healthy = True
        while not self.stopped:
            broken = self._wait_for_deaths()
            if self.stopped:
                return
            self.server.end_outgoing()
            if self.server.wait(0.0):
                self._restart("tritonserver ended")
            elif broken:
                self._heal(broken, "stub ended")
            else:
                self._ask()

    def _wait_for_deaths(self) -> list[str]:
        """Wait an interval, or until the server or a stub ends; returns the models that miss a stub."""
        ended = self._wait([self.server.pid, *self.server.stubs()], self.config.interval_s)
        if self.server.pid in ended:
            self.server.wait(self.config.sweep_s)  # its supervisor has yet to sweep up; asking it would be in vain
            return []
        if not self.server.missing_stubs():
            return []
        self._sleep(self.config.confirm_s)  # a version that is being unloaded looks the same for a moment
        return self.server.missing_stubs()

    def _wait(self, pids: list[int], timeout_s: float) -> set[int]:
        """Wait until one of the processes has ended; says which have."""
        ended: set[int] = set()
        descriptors: dict[int, int] = {}
        try:
            for pid in pids:
                try:
                    descriptors[os.pidfd_open(pid)] = pid
                except ProcessLookupError:
                    ended.add(pid)
            ready, _, _ = select.select(descriptors, [], [], 0.0 if ended else timeout_s)
            return ended | {descriptors[descriptor] for descriptor in ready}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _ask(self) -> None:
        """Apply the rule of `check_health`; a stalled server is restarted at once, another failure has to repeat."""
        try:
            answered = self.server.check_health(self.config.answer_timeout_s, self.config.patience_s)
        except StalledError as error:
            self._restart(str(error))
        except ServingError as error:
            self._fail(str(error))
        else:
            self._failures = 0
            if answered:
                self._succeed()

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self.healthy = False
        self._event("no right answer", reason=reason, failures=self._failures)
        if self._failures >= self.config.failures:
            self._restart(reason)

    def _succeed(self) -> None:
        self.healthy = True
        if time.monotonic() - self._last_restart > self.config.quiet_s:
            self._backoff_s = 0.0

    def _heal(self, broken: list[str], reason: str) -> None:
        """Replace the models, and those that break meanwhile; callers are answered by the stubs that live."""
        self.healthy = False
        started, healed = time.monotonic(), list[str]()
        try:
            while broken:
                for model in broken:
                    self._replace(model)
                healed += broken
                broken = self._check(len(healed) < self.config.heals)
        except ServingError as error:
            self._restart(f"healing {', '.join({*healed, *broken})} failed: {error}")
            return
        self._count("heals", models=healed, reason=reason, seconds=round(time.monotonic() - started, 2))
        self._succeed()

    def _check(self, may_be_broken: bool) -> list[str]:
        """Ask the reference image; returns the models that miss a stub where it is not answered.

        Raises:
            ServingError: it is not answered though none does, or none may.
        """
        try:
            self.server.check(timeout_s=5.0)
        except ServingError:
            broken = self.server.missing_stubs() if may_be_broken else []
            if not broken:
                raise
            return broken
        return []

    def _replace(self, model: str) -> None:
        """A load that Triton refuses is ordered once more: a publication may have moved a version's files meanwhile."""
        try:
            self.server.heal(model, timeout_s=10.0)
        except ControlError as error:
            if not error.status:
                raise
            self._event("heal failed", model=model, reason=str(error))
            self._sleep(self.config.confirm_s)
            self.server.heal(model, timeout_s=10.0)

    def _restart(self, reason: str) -> None:
        """Restart the server on the same addresses; try until it starts."""
        self.healthy = False
        started = time.monotonic()
        while not self.stopped:
            self._sleep(self._backoff_s)
            self._backoff_s = min(max(2 * self._backoff_s, self.config.first_backoff_s), self.config.max_backoff_s)
            try:
                self.server.restart()
                break
            except (ServingError, OSError) as error:  # a full disk may have room again
                self._event("start failed", reason=str(error), next_try_s=self._backoff_s)
        self._failures, self._last_restart = 0, time.monotonic()
        self._count("restarts", reason=reason, seconds=round(time.monotonic() - started, 2))
        self._succeed()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.stopped and time.monotonic() < deadline:
            time.sleep(min(0.1, seconds))

    def _count(self, name: str, **details: Any) -> None:
        self._event(name.removesuffix("s"), count=self.counts[name] + 1, **details)
        self.counts[name] += 1  # who sees the count finds the event


def watcher_metrics(watcher: Watcher) -> str:
    """Health and counters of a watcher, in Prometheus' text format."""
    server, counts = watcher.server, watcher.counts
    values = (
        ("alexnet_healthy", "gauge", "1 while the reference image gets its reference answer", int(watcher.healthy)),
        ("alexnet_heals_total", "counter", "models loaded again after a stub had ended", counts["heals"]),
        ("alexnet_restarts_total", "counter", "restarts of the server", counts["restarts"]),
        ("alexnet_aborted_starts_total", "counter", "starts that the Python backend aborted", server.aborts),
        ("alexnet_cut_drains_total", "counter", "stops that cut requests in flight", server.cut_drains),
    )
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, text, value in values
    )


class MetricsServer:
    """Serves Triton's metrics and the watcher's at /metrics, in a thread, until `close`."""

    def __init__(self, host: str, port: int, watcher: Watcher) -> None:
        """Raises PortTakenError."""
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(watcher))
        except OSError as error:
            raise PortTakenError(host, port, "METRICS_PORT") from error
        self._server.daemon_threads = True
        self.address = f"{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(watcher: Watcher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404, "ask for /metrics")
                return
            body = (_triton_metrics(watcher.server.metrics_address) + watcher_metrics(watcher)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape leaves no line in the log."""

    return Handler


def _triton_metrics(address: str) -> str:
    """Triton's metrics, or nothing while it restarts."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=2.0) as response:
            return response.read().decode()
    except (urllib.error.URLError, OSError):
        return ""
