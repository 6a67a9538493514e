"""Where the time went: each request's here, and the server's share from its own statistics."""

import sys
from collections.abc import Mapping

from client.names import printable
from client.results import Classification
from client.session import Result, Session

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
Totals = dict[str, dict[str, float]]


class Timings:
    """Prints a line a request, and at the end what the server counted meanwhile, over all its clients."""

    def __init__(self, shown: bool, session: Session) -> None:
        self._shown, self._session = shown, session
        self._before: Totals = {}

    async def start(self) -> None:
        """Remember the server's counters."""
        if self._shown:
            self._before = await self._totals()

    def add(self, result: Result) -> None:
        """Print one line."""
        if not self._shown or not isinstance(result, Classification):
            return
        timing = result.timing
        parts = f"read {timing.read_ms:.2f} ms, waited {timing.wait_ms:.2f} ms, request {timing.request_ms:.2f} ms"
        request = f"to {timing.host}, attempt {timing.attempts}, {timing.images} images"
        print(f"{printable(result.path or '')}: {parts} {request}", file=sys.stderr)

    async def finish(self) -> None:
        """Print the server's averages since the start."""
        if not self._shown:
            return
        for model, after in (await self._totals()).items():
            spent = {name: value - self._before.get(model, {}).get(name, 0.0) for name, value in after.items()}
            if spent["images"]:
                print(_line(model, spent), file=sys.stderr)

    async def _totals(self) -> Totals:
        """Nanoseconds and counts of each model the server has."""
        await self._session.inference()
        answer = await self._session.statistics()
        return {f"{each['name']} {each['version']}": _counters(each) for each in answer}


def _counters(model: Mapping[str, object]) -> dict[str, float]:
    stats = model.get("inference_stats")
    parts = stats if isinstance(stats, Mapping) else {}
    counters = {name: float(parts.get(name, {}).get("ns", 0)) for name in PARTS}
    counters["images"] = float(str(model.get("inference_count", 0)))
    counters["batches"] = float(str(model.get("execution_count", 0)))
    counters["requests"] = float(parts.get("success", {}).get("count", 0))
    return counters


def _line(model: str, spent: Mapping[str, float]) -> str:
    requests = max(1.0, spent["requests"])
    means = ", ".join(f"{name.replace('_', ' ')} {spent[name] / requests / 1e6:.2f} ms" for name in PARTS)
    return f"server: {model}: {spent['images']:.0f} images in {spent['batches']:.0f} batches; a request: {means}"
