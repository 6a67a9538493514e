"""Small HTTP servers: hosts of images, and gateways."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet(BaseHTTPRequestHandler):
    """Does the same for GET and POST, `respond`, and writes no log."""

    def do_GET(self) -> None:
        self.respond()

    do_POST = do_GET  # noqa: N815 - the base class's name

    def respond(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server, until the end of the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def recording() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a server that answers everything with an empty object, and the headers that it was sent."""
    heard: list[dict[str, str]] = []

    class Recorder(Quiet):
        def respond(self) -> None:
            heard.append(dict(self.headers))
            self.answer(200, b"{}")

    with serving(Recorder) as address:
        yield address, heard
