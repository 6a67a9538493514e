"""Stage `tune`: the settings with which this server, or a peer, serves most images a second here, found by measuring.

One setting after another is varied while the others stay, and a change is kept where it is clearly better. Every
combination would take an hour, and the settings hardly depend on each other.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.common.files import write_json
from alexnet_triton.export.settings import TUNED, TunedSettings
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig
from alexnet_triton.loadtest.bench.peers import CORES, Settings
from alexnet_triton.loadtest.bench.report import Rows
from alexnet_triton.loadtest.bench.servers import (
    TRITON_HEADERS,
    TUNED_PEERS,
    VARIED,
    peer,
    read_peer_settings,
    triton,
)
from alexnet_triton.loadtest.bench.wrk import http_load
from alexnet_triton.loadtest.variants import edit_in_place, edited_copy
from alexnet_triton.serving.repository import Repository, instance_count

CONNECTIONS = 64
CLEARLY_BETTER = 1.02  # times the rate of before; less is noise
Chosen = TypeVar("Chosen", TunedSettings, Settings)


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


def _describe(settings: TunedSettings | Settings) -> str:
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


def peer_alternatives(names: Collection[str], settings: Settings) -> Iterator[dict[str, int]]:
    """The changes to try of a peer that has these settings, one after another."""
    processes = {CORES, CORES + 1, 2 * CORES}
    values = {"decoders": processes, "workers": processes, "batch": {8, 16, 32}, "wait_ms": {1, 5, 20}}
    for name in names:
        for value in sorted(values[name] - {getattr(settings, name)}):
            yield {name: value}


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Try the changes, keep the better ones, and write the best settings to the built repository for its next start.

    The publications after that keep them. Where peers are named, theirs are looked for instead, and written to the
    working folder, where the stage `served` finds them.
    """
    if config.peers:
        return _tune_peers(config, advance)
    first = read_settings(config.repository)
    best, gain, rows = _search(first, alternatives(first), partial(_try, config), advance)
    edit_in_place(config.repository, partial(apply_settings, best))
    write_json(config.repository / TUNED, asdict(best))  # the next publications keep it
    return {"summary": rows, "written": _describe(best), "ratios": _name_gain("", gain)}


def _tune_peers(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    found, summary, ratios = read_peer_settings(config), list[dict[str, Any]](), dict[str, float]()
    for name in config.peers:
        measure_one = partial(_try_peer, config, name)
        changes = peer_alternatives(VARIED[name], Settings())
        found[name], gain, rows = _search(Settings(), changes, measure_one, advance)
        write_json(config.folder / TUNED_PEERS, {each: asdict(settings) for each, settings in found.items()})
        summary += rows
        ratios |= _name_gain(f"{name}: ", gain)
    written = {name: found[name].describe(VARIED[name]) for name in config.peers}
    return {"summary": summary, "written": written, "ratios": ratios}


def _search(
    first: Chosen, changes: Iterable[dict[str, int]], measure_one: Callable[[Chosen], dict[str, Any]], advance: Advance
) -> tuple[Chosen, float, Rows]:
    """The best settings, their rate over that of the first, and a row of each that was tried.

    A change stays where it is clearly better.
    """
    advance(_describe(first))
    best, rows = first, [measure_one(first)]
    best_rate = rows[0]["images_per_s"]
    for change in changes:
        tried = replace(best, **change)
        advance(_describe(tried))
        rows.append(measure_one(tried))
        if rows[-1]["images_per_s"] > CLEARLY_BETTER * best_rate:
            best, best_rate = tried, rows[-1]["images_per_s"]
    return best, best_rate / rows[0]["images_per_s"], rows


def _name_gain(whose: str, gain: float) -> dict[str, float]:
    return {f"{whose}times the rate of before": gain} if gain > 1 else {}


def _try(config: BenchConfig, setting: TunedSettings) -> dict[str, Any]:
    edit = partial(apply_settings, setting)
    with edited_copy(config.repository, edit) as repository, triton(repository, config.folder) as server:
        return {**asdict(setting), **_measure_load(config, server.url, TRITON_HEADERS)}


def _try_peer(config: BenchConfig, name: str, settings: Settings) -> dict[str, Any]:
    with peer(name, config, settings) as url:
        varied = {each: value for each, value in asdict(settings).items() if each in VARIED[name]}
        return {"target": name, **varied, **_measure_load(config, url, {})}


def _measure_load(config: BenchConfig, url: str, headers: Mapping[str, str]) -> dict[str, float]:
    http_load(url, CONNECTIONS, config.warm_up_s, config.bodies, headers)
    seen = [http_load(url, CONNECTIONS, config.seconds, config.bodies, headers) for _ in range(config.repeats)]
    rates = [load.images_per_s for load in seen]
    p99_ms = median(load.p99_ms for load in seen)
    return {"images_per_s": median(rates), "lowest": min(rates), "highest": max(rates), "p99_ms": p99_ms}
