"""Rates, slow clients and floods."""

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from alexnet_triton.serving import Server
from tests.docker.gateway import INFER, Gateway, infer_request
from tests.docker.test_gateway import grpc_infer, grpc_stub
from tests.serving.tiny import jpeg

ELSEWHERE = ("127.0.0.2", 0)


def test_over_the_rate_is_429(new_gateway: type[Gateway]) -> None:
    """Many at once, so that they are over it on a slow machine as well."""
    gateway = new_gateway(rate=1, burst=3)
    other = gateway.key("other")
    with gateway, ThreadPoolExecutor(40) as callers:
        answers = list(callers.map(lambda seed: gateway.infer(jpeg(seed)), range(40)))
        assert {answer.status for answer in answers} == {200, 429}
        assert sum(answer.status == 200 for answer in answers) >= 4
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["Retry-After"] == "1"
        assert "rate" in refused.json["error"]
        assert gateway.infer(jpeg(1), key=other).status == 200


def test_over_the_rate_is_resource_exhausted(new_gateway: type[Gateway]) -> None:
    gateway = new_gateway(rate=1, burst=3)
    with gateway, grpc_stub(gateway) as stub:
        calls = [stub.ModelInfer.future(grpc_infer(jpeg(1)), metadata=gateway.metadata()) for _ in range(40)]
        refused = [call for call in calls if call.code() is not grpc.StatusCode.OK]
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert dict(refused[0].trailing_metadata())["grpc-retry-pushback-ms"] == "1000"


def begin_slowly(gateway: Gateway) -> tuple[ssl.SSLSocket, bytes]:
    """A request whose body has not come to its end, and what is missing."""
    body, headers = infer_request(jpeg(1))
    lines = {**headers, **gateway.headers(), "Host": "localhost", "Content-Length": str(len(body))}
    connection = gateway.connect()
    head = f"POST {INFER} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection.sendall(head.encode() + b"\r\n" + body[:100])
    return connection, body[100:]


def test_requests_in_flight_of_a_key_are_bounded(new_gateway: type[Gateway]) -> None:
    gateway = new_gateway(requests=2)
    other = gateway.key("other")
    with gateway, ExitStack() as slow:
        for _ in range(2):
            slow.enter_context(begin_slowly(gateway)[0])
        answer = gateway.infer(jpeg(1))
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert gateway.infer(jpeg(1), key=other).status == 200
        assert {entry["triton"] for entry in gateway.entries() if entry["caller"] == "me"} == {""}


def test_a_thousand_slow_connections(gateway: Gateway) -> None:
    """Some say nothing at all, some stop in the middle of their headers; the others are answered as ever."""
    with ExitStack() as slow:
        for number in range(1000):
            connection = slow.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            if number % 10 == 0:
                context = ssl.create_default_context(cafile=gateway.ca)
                wrapped = slow.enter_context(context.wrap_socket(connection, server_hostname="localhost"))
                wrapped.sendall(b"POST /v2/models/classify/infer HTTP/1.1\r\nHost: loc")
        assert [gateway.infer(jpeg(seed)).status for seed in range(20)] == 20 * [200]


def test_connections_of_an_address_are_bounded(new_gateway: type[Gateway]) -> None:
    """Silent ones and those in their handshake too; another address is served, and this one when they are gone."""
    with new_gateway(address_connections=20) as gateway:
        with ExitStack() as silent:
            for _ in range(20):
                silent.enter_context(socket.create_connection(("127.0.0.1", gateway.port), source_address=ELSEWHERE))
            while not is_closed(gateway):
                pass
            assert gateway.infer(jpeg(1)).status == 200
            assert gateway.entries()[-1]["address"] == "127.0.0.1"
        while is_closed(gateway):
            pass


def is_closed(gateway: Gateway) -> bool:
    """Whether a connection from elsewhere gets no answer."""
    with socket.create_connection(("127.0.0.1", gateway.port), 10, ELSEWHERE) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return not connection.recv(4)
        except ConnectionError:
            return True


@contextmanager
def recorder(target: str) -> Iterator[tuple[str, bytearray]]:
    """Passes one connection on to a Triton, and keeps what was sent there."""
    host, _, port = target.rpartition(":")
    sent = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source: socket.socket, sink: socket.socket, copy: bytearray | None) -> None:
            while data := source.recv(65536):
                if copy is not None:
                    copy.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        def serve() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection((host, int(port))) as server:
                back = threading.Thread(target=pump, args=(server, client, None))
                back.start()
                pump(client, server, sent)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", sent
        thread.join(10)


def test_a_million_tiny_chunks_do_not_reach_triton(new_gateway: type[Gateway], tritons: list[Server]) -> None:
    """They come together in the gateway, and the image in them is classified."""
    image = jpeg(3)
    image += bytes(1_000_000 - len(image))  # what follows a JPEG's end is not looked at
    body, headers = infer_request(image)
    with recorder(tritons[0].http_address) as (address, sent):
        gateway = new_gateway(triton_http=[address])
        with gateway:
            answer = send_in_single_bytes(gateway, body, headers)
        entry = gateway.entries()[-1]
    assert b" 200 " in answer.split(b"\r\n")[0]
    assert entry["bytes_in"] > 6 * len(body)
    head, _, received = bytes(sent).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert received == body
    tritons[0].check()


def send_in_single_bytes(gateway: Gateway, body: bytes, headers: dict[str, str]) -> bytes:
    lines = {**headers, **gateway.headers(), "Host": "localhost", "Transfer-Encoding": "chunked", "Connection": "close"}
    head = f"POST {INFER} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with gateway.connect() as connection:
        connection.sendall(head.encode() + b"\r\n")
        connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("cut", [0, 100])
def test_a_caller_that_goes_away_does_no_harm(gateway: Gateway, tritons: list[Server], cut: int) -> None:
    connection, rest = begin_slowly(gateway)
    with connection:
        connection.sendall(rest[:cut])
    assert gateway.infer(jpeg(1)).status == 200
