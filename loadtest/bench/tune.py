"""Stage `tune`: the settings that serve most images a second on this machine, found by measuring.

One setting after another is varied while the others stay, and a change is kept where it is clearly better: the best
of every combination would take an hour, and the settings hardly depend on each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.loadtest.bench import wrk
from alexnet_triton.loadtest.bench.config import CORES, BenchConfig
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, triton
from alexnet_triton.loadtest.bench.variants import rewrite, variant
from alexnet_triton.serving.repository import Repository, instance_count

CONNECTIONS = 64
CLEARLY = 1.02  # times the rate of before: less is noise
Advance = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What is tuned. With a bounded queue Triton 2.51 wants two instances of a model or more."""

    decoders: int  # instances of `preprocess`
    networks: int  # instances of `alexnet`
    threads: int  # of each network
    batch: int  # the largest
    delay_us: int  # how long the first image of a batch waits for more

    @classmethod
    def read(cls, repository: Path) -> "Setting":
        """The setting of a built repository."""
        configs = Repository.open(repository, "cpu").configs
        network = configs["alexnet"]
        return cls(
            instance_count(configs["preprocess"]),
            instance_count(network),
            int(network.parameters["threads"].string_value),
            network.max_batch_size,
            network.dynamic_batching.max_queue_delay_microseconds,
        )

    def put(self, config: ModelConfig) -> None:
        """Write it into the configuration of a model, in place."""
        config.max_batch_size = self.batch
        if config.name == "preprocess":
            config.instance_group[0].count = self.decoders
        if config.name == "alexnet":
            config.instance_group[0].count = self.networks
            config.parameters["threads"].string_value = str(self.threads)
            config.dynamic_batching.max_queue_delay_microseconds = self.delay_us

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def alternatives(setting: Setting) -> Iterator[dict[str, int]]:
    """Changes to try, one after another."""
    for decoders in sorted({2, max(2, CORES), CORES + 1, 2 * CORES} - {setting.decoders}):
        yield {"decoders": decoders}
    layouts = {(max(2, CORES), 1), (CORES + 1, 1), (2, max(1, CORES // 2)), (2, CORES)}
    for networks, threads in sorted(layouts - {(setting.networks, setting.threads)}):
        yield {"networks": networks, "threads": threads}
    for batch in sorted({8, 16, 32} - {setting.batch}):
        yield {"batch": batch}
    for delay_us in sorted({0, 1_000, 5_000} - {setting.delay_us}):
        yield {"delay_us": delay_us}


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Try, keep what is clearly better, and write the best to the built repository, whose next start has it.

    Raises:
        BenchError: a server does not start, or wrk is missing.
    """
    best = first = Setting.read(config.repository)
    rows = [_try(config, best, advance)]
    best_rate = rows[0]["images_per_s"]
    for change in alternatives(best):
        rows.append(_try(config, replace(best, **change), advance))
        if rows[-1]["images_per_s"] > CLEARLY * best_rate:
            best, best_rate = replace(best, **change), rows[-1]["images_per_s"]
    rewrite(config.repository, best.put)
    return {
        "summary": rows,
        "written": str(best),
        "ratios": {"times the rate of before": best_rate / rows[0]["images_per_s"]} if best != first else {},
    }


def _try(config: BenchConfig, setting: Setting, advance: Advance) -> dict[str, Any]:
    advance(str(setting))
    copy = variant(config.repository, config.folder / "tuned", setting.put)
    with copy as repository, triton(repository, config.folder) as server:
        wrk.http_load(server.url, CONNECTIONS, config.warm_up_s, config.bodies, TRITON_HEADERS)
        seen = [
            wrk.http_load(server.url, CONNECTIONS, config.seconds, config.bodies, TRITON_HEADERS)
            for _ in range(config.repeats)
        ]
    rates = [one.images_per_s for one in seen]
    p99_ms = median(one.p99_ms for one in seen)
    figures = {"images_per_s": median(rates), "lowest": min(rates), "highest": max(rates), "p99_ms": p99_ms}
    return {**asdict(setting), **figures}
