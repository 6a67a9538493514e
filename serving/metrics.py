"""One Prometheus endpoint for the server and for what watches it."""

import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from serving.errors import PortTakenError
from serving.watch import Watcher


def watcher_metrics(watcher: Watcher) -> str:
    """Health and counters of a watcher, in Prometheus' text format."""
    values = (
        ("alexnet_healthy", "gauge", "1 while the known image gets its known answer", int(watcher.healthy)),
        ("alexnet_heals_total", "counter", "models loaded anew because a stub had ended", watcher.counts["heals"]),
        ("alexnet_restarts_total", "counter", "servers started anew", watcher.counts["restarts"]),
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
            """Scrapes are not news."""

    return Handler


def _triton_metrics(address: str) -> str:
    """What Triton says, or nothing while it is being started again."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=2.0) as response:
            return response.read().decode()
    except (urllib.error.URLError, OSError):
        return ""
