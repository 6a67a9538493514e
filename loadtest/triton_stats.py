"""What Triton counted while a load ran: batches formed, and where requests spent their time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
Stats = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclass(frozen=True)
class ModelView:
    """One model during the run.

    Attributes:
        inferences: images. A batch of several in one request counts as several.
        executions: batches that the model ran.
        batches: size to how often it was run.
        parts_ms: mean time of a request in the queue, and in each part of the computation, in Triton's names.
    """

    name: str
    version: str
    requests: int
    failed: int
    inferences: int
    executions: int
    batches: dict[int, int]
    parts_ms: dict[str, float]

    @property
    def mean_batch(self) -> float:
        """Images a batch."""
        return self.inferences / self.executions if self.executions else 0.0


def index_stats(models: Sequence[Mapping[str, Any]]) -> Stats:
    """Statistics by name and version."""
    return {(str(each["name"]), str(each["version"])): each for each in models}


def compare_stats(before: Stats, after: Stats) -> list[ModelView]:
    """What each model did between two answers of Triton's statistics extension; idle models are left out.

    Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
    """
    views = [_view(key, before.get(key, {}), stats) for key, stats in after.items()]
    return [view for view in views if view.requests or view.failed]


def _view(key: tuple[str, str], before: Mapping[str, Any], after: Mapping[str, Any]) -> ModelView:
    requests = _part(after, "success", "count") - _part(before, "success", "count")
    spent_ns = {part: _part(after, part, "ns") - _part(before, part, "ns") for part in PARTS}
    old, new = _batches(before), _batches(after)
    return ModelView(
        *key,
        requests=requests,
        failed=_part(after, "fail", "count") - _part(before, "fail", "count"),
        inferences=_count(after, "inference_count") - _count(before, "inference_count"),
        executions=_count(after, "execution_count") - _count(before, "execution_count"),
        batches={size: count - old.get(size, 0) for size, count in sorted(new.items()) if count > old.get(size, 0)},
        parts_ms={part: ns / max(1, requests) / 1e6 for part, ns in spent_ns.items()},
    )


def _count(stats: Mapping[str, Any], name: str) -> int:
    return int(stats.get(name, 0))


def _part(stats: Mapping[str, Any], part: str, name: str) -> int:
    return int(stats.get("inference_stats", {}).get(part, {}).get(name, 0))


def _batches(stats: Mapping[str, Any]) -> dict[int, int]:
    return {
        int(each["batch_size"]): int(each.get("compute_infer", {}).get("count", 0))
        for each in stats.get("batch_stats", ())
    }
