"""Certificates, and a TLS end point in front of the real server."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")  # as docker/prepare.sh: made at once


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both in PEM."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates. `ca` is its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.ca = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        openssl(
            *("req", "-x509", *NEW_KEY, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", self.ca.key, "-out", self.ca.cert),
        )

    def sign(self, name: str, days: int = 2, address: str = "127.0.0.1") -> Pair:
        """A certificate for an address, valid for `days`; one of -1 has expired."""
        pair = Pair(self._folder / f"{self._name}-{name}.pem", self._folder / f"{self._name}-{name}.key")
        request, extensions = pair.cert.with_suffix(".csr"), pair.cert.with_suffix(".ext")
        extensions.write_text(f"subjectAltName=IP:{address}\n")
        openssl("req", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request)
        openssl(
            *("x509", "-req", "-in", request, "-days", days, "-extfile", extensions, "-out", pair.cert),
            *("-CA", self.ca.cert, "-CAkey", self.ca.key, "-CAcreateserial"),
        )
        return pair


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@contextmanager
def end_point(target: int, server: Pair, client_ca: Path | None = None) -> Iterator[int]:
    """Speaks TLS on a port and passes what it hears on to `target`; with `client_ca` it asks who is there."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.load_cert_chain(server.cert, server.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.verify_mode = ssl.CERT_REQUIRED if client_ca else ssl.CERT_NONE
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    passing = _Passing(target)
    port = asyncio.run_coroutine_threadsafe(passing.listen(context), loop).result()
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(passing.end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Passing:
    """Connections and what is passed between them. All are ended with it, also one that has just been accepted."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self, context: ssl.SSLContext) -> int:
        """Returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        return self._server.sockets[0].getsockname()[1]

    async def end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}  # asyncio's own too: handshakes that nobody ended
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        for _ in range(5):  # what was aborted closes its sockets, in several steps below TLS
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.append(inner_writer)
        await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
