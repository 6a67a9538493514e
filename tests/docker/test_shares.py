"""What callers take from each other: memory, priority, and places in the queues."""

import json
import os
import signal
import ssl
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from alexnet_triton.client import Classifier
from alexnet_triton.common.infer_request import HEADER_LENGTH, bytes_tensor
from alexnet_triton.serving import Server
from tests.docker.gateway import INFER, NGINX, Answer, Gateway, infer_request
from tests.docker.test_gateway import grpc_infer, grpc_stub
from tests.docker.test_limits import recorder
from tests.serving.tiny import jpeg

LARGE = 2_000_000  # bytes
MIB = 2**20


# ---- memory


@contextmanager
def unfinished(gateway: Gateway, caller: str, length: int | None) -> Iterator[ssl.SSLSocket]:
    """A request in flight whose body does not come; without a length it says that it comes in chunks."""
    size = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    lines = {**gateway.headers(caller), **size, HEADER_LENGTH: "9", "Host": "localhost"}
    head = f"POST {INFER} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with gateway.connect() as connection:
        connection.sendall(head.encode() + b"\r\n")
        yield connection


def keys(gateway: Gateway, count: int) -> list[str]:
    names = [f"caller{number}" for number in range(count)]
    for name in names:
        gateway.key(name)
    return names


@pytest.mark.parametrize("length", [LARGE, 1_000_000, None])
def test_large_bodies_of_all_keys_are_bounded(new_gateway: type[Gateway], length: int | None) -> None:
    """256 MiB hold four of 16 MiB, and a key has one of them."""
    gateway = new_gateway(memory_mib=256)
    names = keys(gateway, 5)
    with gateway, ExitStack() as slow:
        for name in names[:4]:
            slow.enter_context(unfinished(gateway, name, length))
        assert wait_for_refusal(gateway, gateway.key(names[4])).headers["Retry-After"] == "1"
        assert gateway.infer(jpeg(1), key=gateway.key(names[4])).status == 200


def wait_for_refusal(gateway: Gateway, key: str) -> Answer:
    """The answer to a large request, once the ones before it are in flight."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        answer = gateway.ask("POST", INFER, bytes(LARGE), {HEADER_LENGTH: "9"}, key)
        if answer.status == 429:
            assert "in flight" in answer.json["error"]
            assert gateway.entry(answer)["bytes_in"] < LARGE
            return answer
    raise AssertionError(answer)


def test_large_bodies_of_a_key_are_a_quarter(new_gateway: type[Gateway]) -> None:
    gateway = new_gateway(memory_mib=256)
    other = gateway.key("other")
    with gateway, unfinished(gateway, "me", LARGE):
        wait_for_refusal(gateway, gateway.key())
        assert gateway.infer(jpeg(1)).status == 200
        assert gateway.ask("POST", INFER, bytes(LARGE), {HEADER_LENGTH: "9"}, other).status != 429


def worker(gateway: Gateway) -> int:
    """The process id of nginx's worker."""
    assert gateway.process
    (master,) = children(gateway.process.pid)
    return children(master)[0]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_flood_of_large_bodies_stays_in_its_memory(new_gateway: type[Gateway]) -> None:
    """48 callers of 16 MiB, and the small requests of another are answered meanwhile."""
    gateway = new_gateway(memory_mib=256)
    flooding = [gateway.key(name) for name in keys(gateway, 12)]
    calm, body = gateway.key("calm"), bytes(15 * MIB)
    with gateway, ThreadPoolExecutor(48) as callers:
        answers = [
            callers.submit(gateway.ask, "POST", INFER, body, {HEADER_LENGTH: "9"}, flooding[number % 12])
            for number in range(48)
        ]
        while not all(answer.done() for answer in answers):
            assert gateway.infer(jpeg(1), key=calm).status == 200
        peak = status_kib(worker(gateway), "VmHWM")
    # A refusal may meet a caller that still sends, which then sees a broken pipe.
    assert all(answer.exception() or answer.result().status in (400, 429, 500) for answer in answers)
    assert peak < (256 + 48) * 1024  # KiB


def status_kib(pid: int, name: str) -> int:
    """A figure of /proc/PID/status."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{name}:")[1].split()[0])


def test_no_room_is_503(new_gateway: type[Gateway], tmp_path: Path) -> None:
    """Nginx may have 8 MiB more than it has at its start."""
    with new_gateway() as before:
        limit = status_kib(worker(before), "VmPeak") + 8 * 1024
    nginx = tmp_path / "nginx"
    nginx.write_text(f'#!/bin/sh\nulimit -v {limit}\nexec "{NGINX}" "$@"\n')
    nginx.chmod(0o755)
    with new_gateway(nginx=nginx) as gateway:
        with unfinished(gateway, "me", 15 * MIB) as connection:
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1\r\n" in answer
        assert b"no room" in answer
        with grpc_stub(gateway) as stub, pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(grpc_infer(bytes(15 * MIB)), metadata=gateway.metadata())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(raised.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert gateway.infer(jpeg(1)).status == 200


# ---- priority


def with_priority(image: bytes, parameters: str = '"priority": 1', images: int = 1) -> tuple[bytes, dict[str, str]]:
    """A request whose header has these parameters."""
    data = bytes_tensor(images * [image])
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [images, 1]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}).encode()
    head = head[:-1] + b', "parameters": {' + parameters.encode() + b"}}"
    return head + data, {HEADER_LENGTH: str(len(head))}


def grpc_with_priority(image: bytes) -> object:
    request = grpc_infer(image)
    request.parameters["priority"].int64_param = 1
    return request


def test_priority_is_renamed(new_gateway: type[Gateway], tritons: list[Server]) -> None:
    """What comes after the header, the word among it, is untouched."""
    image = jpeg(1) + b'"priority"'
    body, headers = with_priority(image)
    with recorder(tritons[0].http_address) as (address, sent), new_gateway(triton_http=[address]) as gateway:
        answer = gateway.ask("POST", INFER, body, headers)
    assert answer.probabilities == pytest.approx(gateway_free(tritons[0].http_address, jpeg(1)))
    assert bytes(sent).partition(b"\r\n\r\n")[2] == body.replace(b'"priority"', b'"Priority"', 1)


def gateway_free(address: str, image: bytes) -> list[float]:
    """The probabilities that a Triton gives directly."""
    body, headers = infer_request(image)
    with urllib.request.urlopen(urllib.request.Request(f"http://{address}{INFER}", body, headers)) as response:
        return json.load(response)["outputs"][0]["data"]


def test_priority_is_renamed_over_grpc(new_gateway: type[Gateway], tritons: list[Server]) -> None:
    with (
        recorder(tritons[0].grpc_address) as (address, sent),
        new_gateway(triton_grpc=[address]) as gateway,
        grpc_stub(gateway) as stub,
    ):
        answer = stub.ModelInfer(grpc_with_priority(jpeg(1)), metadata=gateway.metadata())
    (tensor,) = answer.raw_output_contents
    assert struct.unpack("<10f", tensor) == pytest.approx(gateway_free(tritons[0].http_address, jpeg(1)), abs=1e-6)
    assert (b"Priority" in sent, b"\x08priority" in sent) == (True, False)


def test_listed_keys_name_a_priority(new_gateway: type[Gateway], tritons: list[Server]) -> None:
    body, headers = with_priority(jpeg(1))
    with (
        recorder(tritons[0].http_address) as (address, sent),
        new_gateway(triton_http=[address], priority_keys="me you") as gateway,
    ):
        assert gateway.ask("POST", INFER, body, headers).status == 200
    assert body in sent


@pytest.mark.parametrize(
    "parameters",
    ['"\\u0070riority": 1', '"priorit\\u0079": 1', '"priority": 1, "priority": 1', '"é": 1, "\\u0070riority": 1'],
)
def test_priority_in_disguise_is_refused(gateway: Gateway, parameters: str) -> None:
    answer = gateway.ask("POST", INFER, *with_priority(jpeg(1), parameters))
    assert (answer.status, "priority" in answer.json["error"]) == (403, True)
    assert gateway.entry(answer)["triton"] == ""


def test_priority_of_a_large_request_is_refused(gateway: Gateway) -> None:
    answer = gateway.ask("POST", INFER, *with_priority(jpeg(1) + bytes(LARGE)))
    assert (answer.status, "priority" in answer.json["error"]) == (403, True)
    with grpc_stub(gateway) as stub, pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(grpc_with_priority(jpeg(1) + bytes(LARGE)), metadata=gateway.metadata())
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "priority" in raised.value.details()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_the_client_may_ask_for_a_priority(gateway: Gateway, scheme: str) -> None:
    """It is answered; where its key is not listed, at the priority of all others."""
    with Classifier(gateway.url(scheme), headers=gateway.headers(), tls=gateway.tls, priority=1) as client:
        assert client.classify(jpeg(1)).top


# ---- places in the queues


@contextmanager
def flood(gateway: Gateway, callers: int = 64) -> Iterator[Counter[int]]:
    """Callers with the key of `me` who send 16 images at priority 1, again at once; the statuses."""
    body, headers = with_priority(jpeg(1), images=16)
    headers = {**headers, **gateway.headers()}
    over, statuses = threading.Event(), Counter[int]()

    def send() -> None:
        while not over.is_set():
            statuses[gateway.ask("POST", INFER, body, headers).status] += 1

    threads = [threading.Thread(target=send) for _ in range(callers)]
    try:
        for thread in threads:
            thread.start()
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_late_answers_halve_the_share_of_their_key(new_gateway: type[Gateway], tritons: list[Server]) -> None:
    """Triton stands still while six are in flight. Then three may be, until answers are in time again."""
    gateway = new_gateway(triton_http=[tritons[0].http_address])
    other = gateway.key("other")
    with gateway, ThreadPoolExecutor(24) as callers:
        assert ask_a_still_triton(gateway, callers, tritons[0], 6, refused=6) == {200: 6, 429: 6}
        assert ask_a_still_triton(gateway, callers, tritons[0], 3, refused=3) == {200: 3, 429: 3}
        assert ask_a_still_triton(gateway, callers, tritons[0], 6, key=other) == {200: 6}
        for _ in range(16):
            assert gateway.infer(jpeg(1)).status == 200
        assert ask_a_still_triton(gateway, callers, tritons[0], 12) == {200: 12}


def ask_a_still_triton(
    gateway: Gateway, callers: ThreadPoolExecutor, triton: Server, answered: int, refused: int = 0, key: str = ""
) -> Counter[int]:
    """The statuses. Triton goes on when as many were refused, and the others are late by then."""
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        asked = [
            callers.submit(gateway.infer, jpeg(seed), key=key or gateway.key()) for seed in range(answered + refused)
        ]
        deadline = time.monotonic() + 5
        while sum(answer.done() for answer in asked) < refused and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.2)
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    return Counter(answer.result().status for answer in asked)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_flood_of_one_key_does_not_starve_another(new_gateway: type[Gateway], scheme: str) -> None:
    """Each answer within 5 s, for five seconds over HTTP and over gRPC; FLOOD_S=60 makes each a minute."""
    gateway = new_gateway()
    headers, answered = gateway.headers("calm"), 0
    end = time.monotonic() + float(os.environ.get("FLOOD_S", "5"))
    calm = Classifier(gateway.url(scheme), headers=headers, tls=gateway.tls, timeout_s=5)
    with gateway, flood(gateway) as statuses, calm:
        while time.monotonic() < end:
            assert calm.classify(jpeg(2)).top
            answered += 1
    print(f"{answered} answers for the calm key; the flood: {dict(statuses)}")
    assert answered
    assert statuses[200]
    assert set(statuses) <= {200, 429, 503}
