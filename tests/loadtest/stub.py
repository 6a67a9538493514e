"""A server that speaks as much of Triton's HTTP as a load test needs, with a service time that is known.

    python tests/loadtest/stub.py --service-ms 5 --stall-at 500 --stall-s 2 --wrong-every 1000

prints its port. It answers each image with a class that its bytes decide.
"""

import argparse
import asyncio
import json
import random
import struct
import time
import zlib
from functools import partial

CONFIG = {
    "name": "classify",
    "max_batch_size": 16,
    "input": [{"name": "encoded", "data_type": "TYPE_STRING", "dims": [1]}],
    "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10]}],
}


class Stub:
    """What all connections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.requests = self.wrong = 0
        self.stall_end_s = self.late_ms = 0.0
        self.random = random.Random(options.seed)

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, object, float]:
        """Status, JSON, and after how many seconds."""
        if path.endswith("/infer") and 0 < self.options.refuse_after <= self.requests:
            return 503, {"error": "Exceeds maximum queue size"}, 0.0
        if path.endswith("/infer"):
            return 200, *self._infer(int(headers["inference-header-content-length"]), body)
        if path.endswith("/models/classify/config"):
            return 200, CONFIG, 0.0
        if path.endswith("/stub"):
            return 200, {"requests": self.requests, "wrong": self.wrong, "late_ms": self.late_ms}, 0.0
        if path.endswith("/stats"):
            return 200, {"model_stats": []}, 0.0
        if path.endswith("/ready") or path.endswith("/v2"):
            return 200, {}, 0.0
        return 400, {"error": "Request for unknown model"}, 0.0

    def _infer(self, header_length: int, body: bytes) -> tuple[object, float]:
        self.requests += 1
        header = json.loads(body[:header_length])
        wanted = header["outputs"][0]["parameters"]["classification"]
        wrong = bool(self.options.wrong_every) and self.requests % self.options.wrong_every == 0
        self.wrong += wrong
        classes = [each for image in _elements(body[header_length:]) for each in _classes(image, wanted, wrong)]
        output = {"name": "probabilities", "datatype": "BYTES", "shape": [len(classes)], "data": classes}
        return {"model_name": "classify", "model_version": "1", "outputs": [output]}, self._delay_s()

    def _delay_s(self) -> float:
        now_s, service_s = time.monotonic(), self.options.service_ms / 1e3
        if self.options.spread:
            service_s *= self.random.lognormvariate(0.0, self.options.spread)
        if self.requests == self.options.stall_at:
            self.stall_end_s = now_s + self.options.stall_s
        return max(service_s, self.stall_end_s + service_s - now_s if self.stall_end_s > now_s else 0.0)


class Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self, stub: Stub) -> None:
        self._stub, self._received = stub, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        start, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        status, answer, delay_s = self._stub.answer(start.split()[1], headers, rest[:length])
        content = json.dumps(answer).encode()
        reply = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        if delay_s > 0:
            due_s = time.monotonic() + delay_s
            asyncio.get_running_loop().call_later(delay_s, self._answer, reply.encode() + content, due_s)
        else:
            self._transport.write(reply.encode() + content)

    def _answer(self, content: bytes, due_s: float) -> None:
        self._stub.late_ms = max(self._stub.late_ms, 1e3 * (time.monotonic() - due_s))
        self._transport.write(content)


def _elements(tensor: bytes) -> list[bytes]:
    elements, start = [], 0
    while start < len(tensor):
        (length,) = struct.unpack_from("<I", tensor, start)
        elements.append(tensor[start + 4 : start + 4 + length])
        start += 4 + length
    return elements


def _classes(image: bytes, wanted: int, wrong: bool) -> list[str]:
    best = (zlib.crc32(image) + wrong) % 10
    return [f"{0.9 if rank == 0 else 0.01:.6f}:{(best + rank) % 10}" for rank in range(wanted)]


async def serve(options: argparse.Namespace) -> None:
    server = await asyncio.get_running_loop().create_server(partial(Connection, Stub(options)), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service-ms", type=float, default=0.0)
    parser.add_argument("--spread", type=float, default=0.0, help="sigma of a log-normal factor")
    parser.add_argument("--stall-at", type=int, default=0, metavar="REQUEST")
    parser.add_argument("--stall-s", type=float, default=2.0)
    parser.add_argument("--wrong-every", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--refuse-after", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
