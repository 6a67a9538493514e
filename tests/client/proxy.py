"""A TCP proxy whose connections can be made to fail."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What happens to bytes from the server: given the number of the connection and the bytes, what is passed on.
# None closes the connection.
Fault = Callable[[int, bytes], bytes | None]


ANSWERED_S = 1.0  # a server that sends nothing for so long has answered what it was asked


class Last(bytes):
    """Bytes that are passed on before the connection is closed."""


def honest(connection: int, data: bytes) -> bytes:
    return data


class Proxy:
    """Passes connections on to `target`; `fault` may be changed while it runs."""

    def __init__(self, target: int) -> None:
        self.fault: Fault = honest
        self.connections = 0
        self.delay_s = 0.0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every caller's connection at once, with a reset.

        The server hears of it once it has answered: a gRPC call that is cancelled while its answer is written ends
        Triton 2.51 now and then (triton-inference-server/server, issue 7368).
        """
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._over.set()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            client, _ = self._listener.accept()
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(client, self.connections))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open.add(client)
            try:
                with contextlib.suppress(OSError):
                    while not self._over.is_set() and self._pass(client, server, number):
                        pass
            finally:
                self._open.remove(client)
                client.close()
            server.settimeout(ANSWERED_S)
            while server.recv(65536):
                pass

    def _pass(self, client: socket.socket, server: socket.socket, number: int) -> bool:
        for source in select.select([client, server], [], [], 0.05)[0]:
            data = source.recv(65536)
            if not data:
                return False
            passed: bytes | None = data
            if source is server:
                time.sleep(self.delay_s)
                passed = self.fault(number, data)
            if passed is None:
                return False
            (client if source is server else server).sendall(passed)
            if isinstance(passed, Last):
                return False
        return True


@contextmanager
def proxied(target: int) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
