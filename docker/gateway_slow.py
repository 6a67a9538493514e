"""P99 of good callers through the gateway, alone and beside a thousand slow ones."""

import asyncio
import contextlib
import json
import ssl
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from measured_gateway import INFER, ROOT, Gateway, MeasureError, Settings

from serving import Server

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
