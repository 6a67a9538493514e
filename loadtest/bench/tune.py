"""Stage `tune`: the settings that serve most images a second on this machine, found by measuring.

One setting after another is varied while the others stay, and a change is kept where it is clearly better. Every
combination would take an hour, and the settings hardly depend on each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.loadtest.bench.config import CORES, Advance, BenchConfig
from alexnet_triton.loadtest.bench.servers import triton
from alexnet_triton.loadtest.bench.wrk import jpeg_load
from alexnet_triton.loadtest.variants import edit_in_place, edited_copy
from alexnet_triton.serving.repository import Repository, instance_count

CONNECTIONS = 64
CLEARLY_BETTER = 1.02  # times the rate of before; less is noise


@dataclass(frozen=True)
class TunedSetting:
    """What is tuned. With a bounded queue Triton 2.51 needs two instances of a model or more."""

    decoders: int  # instances of `preprocess`
    networks: int  # instances of `alexnet`
    threads: int  # of each network
    batch: int  # the largest
    delay_us: int  # how long the first image of a batch waits for more

    @classmethod
    def read(cls, repository: Path) -> "TunedSetting":
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

    def write_to(self, configs: Mapping[str, ModelConfig]) -> None:
        """Change the models' configurations, in place."""
        for config in configs.values():
            config.max_batch_size = self.batch
        configs["preprocess"].instance_group[0].count = self.decoders
        network = configs["alexnet"]
        network.instance_group[0].count = self.networks
        network.parameters["threads"].string_value = str(self.threads)
        network.dynamic_batching.max_queue_delay_microseconds = self.delay_us

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def alternatives(setting: TunedSetting) -> Iterator[dict[str, int]]:
    """The changes to try, one after another."""
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
    """Try the changes, keep the better ones, and write the best setting to the built repository for its next start.

    Raises:
        BenchError: a server does not start, or wrk is missing.
    """
    best = first = TunedSetting.read(config.repository)
    rows = [_try(config, best, advance)]
    best_rate = rows[0]["images_per_s"]
    for change in alternatives(best):
        rows.append(_try(config, replace(best, **change), advance))
        if rows[-1]["images_per_s"] > CLEARLY_BETTER * best_rate:
            best, best_rate = replace(best, **change), rows[-1]["images_per_s"]
    edit_in_place(config.repository, best.write_to)
    return {
        "summary": rows,
        "written": str(best),
        "ratios": {"times the rate of before": best_rate / rows[0]["images_per_s"]} if best != first else {},
    }


def _try(config: BenchConfig, setting: TunedSetting, advance: Advance) -> dict[str, Any]:
    advance(str(setting))
    with edited_copy(config.repository, setting.write_to) as repository, triton(repository, config.folder) as server:
        jpeg_load(server, CONNECTIONS, config.warm_up_s, config.bodies)
        seen = [jpeg_load(server, CONNECTIONS, config.seconds, config.bodies) for _ in range(config.repeats)]
    rates = [load.images_per_s for load in seen]
    p99_ms = median(load.p99_ms for load in seen)
    figures = {"images_per_s": median(rates), "lowest": min(rates), "highest": max(rates), "p99_ms": p99_ms}
    return {**asdict(setting), **figures}
