"""Stage `tune`: the settings that serve most images a second on this machine, found by measuring.

One setting after another is varied while the others stay, and a change is kept where it is clearly better. Every
combination would take an hour, and the settings hardly depend on each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.common.files import write_json
from alexnet_triton.export.settings import TUNED, TunedSettings
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig
from alexnet_triton.loadtest.bench.peers import CORES
from alexnet_triton.loadtest.bench.servers import triton
from alexnet_triton.loadtest.bench.wrk import jpeg_load
from alexnet_triton.loadtest.variants import edit_in_place, edited_copy
from alexnet_triton.serving.repository import Repository, instance_count

CONNECTIONS = 64
CLEARLY_BETTER = 1.02  # times the rate of before; less is noise


def read_settings(repository: Path) -> TunedSettings:
    """The settings of a built repository. A queue with priorities wants two instances of a model or more."""
    opened = Repository.open(repository, "cpu")
    configs = opened.by_source_name
    network = configs["alexnet"]
    return TunedSettings(
        instance_count(configs["preprocess"]),
        instance_count(network),
        int(network.parameters["threads"].string_value),
        network.max_batch_size,
        network.dynamic_batching.max_queue_delay_microseconds,
        int(opened.variant.partition("-")[2] or 0),
    )


def apply_settings(settings: TunedSettings, configs: Mapping[str, ModelConfig]) -> None:
    """Change the models' configurations, in place."""
    for model, config in configs.items():
        settings.apply(model, config)


def _describe(settings: TunedSettings) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(settings).items())


def alternatives(setting: TunedSettings) -> Iterator[dict[str, int]]:
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
    """Try the changes, keep the better ones, and write the best settings to the built repository for its next start.

    The publications after that keep them.
    """
    best = first = read_settings(config.repository)
    rows = [_try(config, best, advance)]
    best_rate = rows[0]["images_per_s"]
    for change in alternatives(best):
        rows.append(_try(config, replace(best, **change), advance))
        if rows[-1]["images_per_s"] > CLEARLY_BETTER * best_rate:
            best, best_rate = replace(best, **change), rows[-1]["images_per_s"]
    edit_in_place(config.repository, partial(apply_settings, best))
    write_json(config.repository / TUNED, asdict(best))  # the next publications keep it
    return {
        "summary": rows,
        "written": _describe(best),
        "ratios": {"times the rate of before": best_rate / rows[0]["images_per_s"]} if best != first else {},
    }


def _try(config: BenchConfig, setting: TunedSettings, advance: Advance) -> dict[str, Any]:
    advance(_describe(setting))
    edit = partial(apply_settings, setting)
    with edited_copy(config.repository, edit) as repository, triton(repository, config.folder) as server:
        jpeg_load(server, CONNECTIONS, config.warm_up_s, config.bodies)
        seen = [jpeg_load(server, CONNECTIONS, config.seconds, config.bodies) for _ in range(config.repeats)]
    rates = [load.images_per_s for load in seen]
    p99_ms = median(load.p99_ms for load in seen)
    figures = {"images_per_s": median(rates), "lowest": min(rates), "highest": max(rates), "p99_ms": p99_ms}
    return {**asdict(setting), **figures}
