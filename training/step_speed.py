"""Training speed of the 2012 network, each way of computing it in turn: python -m alexnet_triton.training.step_speed --json bench.json.

A step is forward, backward and optimiser on pixels that are already in memory. The ways alternate, so that what else
the machine does meets all of them; ratios are taken within a round. Rates are medians, in images a second.
Exit codes: 0 measured; 1 the report cannot be written; 2 wrong command line.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn

from alexnet_triton.common import files, provenance
from alexnet_triton.training.device import has_bf16, keep_freed_memory, mixed_precision, pick_device, place
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import AlexNet, LocalResponseNorm, NetworkConfig, Normalize, initialize
from alexnet_triton.training.recipe import RECIPES, make_optimizer

Step = Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """One way to compute a step."""

    name: str
    precision: str
    channels_last: bool = True
    own_normalization: bool = True


OURS = Variant("bf16, channels_last", "bf16")
VARIANTS = (
    OURS,
    Variant("fp32, channels_first", "fp32", channels_last=False),
    Variant("bf16, channels_last, PyTorch's LocalResponseNorm", "bf16", own_normalization=False),
)


def make_step(way: Variant, network: NetworkConfig, batch: int) -> Step:
    """A training step on random images, uint8 [batch, S, S, 3]."""
    device, size = pick_device(), network.input_size
    torch.manual_seed(0)
    trained = AlexNet(network)
    initialize(trained, "he")
    if not way.own_normalization:
        _use_pytorchs_normalization(trained.features)
    trained.train()
    trained.to(device)
    if way.channels_last:
        place(trained, device)
    optimizer = make_optimizer(trained, replace(RECIPES["fast"], learning_rate=1e-6))
    normalize = Normalize((127.0,) * 3, (60.0,) * 3).to(device)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, network.classes, (batch,), device=device)

    def step() -> None:
        with mixed_precision(device, way.precision):
            pixels = normalize(images)
            logits = trained(pixels if way.channels_last else pixels.contiguous())
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _use_pytorchs_normalization(layers: nn.Sequential) -> None:
    for number, layer in enumerate(layers):
        if isinstance(layer, LocalResponseNorm):
            layers[number] = nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)


def measure(steps: dict[str, Step], rounds: int, repeats: int, batch: int) -> dict[str, list[float]]:
    """Images a second of each way in each round, after one round that isn't counted."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    with progress_bar() as progress:
        for number in progress.track(range(rounds + 1), description="measuring"):
            for name, step in steps.items():
                start = perf_counter()
                for _ in range(repeats):
                    step()
                if number:
                    rates[name].append(repeats * batch / (perf_counter() - start))
    return rates


def summarize(rates: dict[str, list[float]]) -> list[dict[str, object]]:
    """A row a way: median rate, and how many times the rate of each other way `bf16, channels_last` has."""
    ours = rates[OURS.name]
    rows: list[dict[str, object]] = []
    for name, values in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(ours, values, strict=True)]
        rows.append({"way": name, "images_per_second": _spread(values), "bf16_channels_last_is_times": _spread(ratios)})
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(rows: list[dict[str, object]]) -> str:
    def cell(spread: object) -> str:
        assert isinstance(spread, dict)
        return f"{spread['median']:7.2f} ({spread['least']:.2f} to {spread['most']:.2f})"

    lines = [f"{'images a second':<50}{'median (spread)':<30}bf16, channels_last is ... times as fast"]
    for row in rows:
        ratio = cell(row["bf16_channels_last_is_times"])
        lines.append(f"{row['way']!s:<50}{cell(row['images_per_second']):<30}{ratio}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.training.step_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=64, help="images a step (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each way is measured (default 7)")
    parser.add_argument("--repeats", type=int, default=3, help="steps a measurement (default 3)")
    parser.add_argument("--width", type=float, default=1.0, help="times the published channels and units")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    keep_freed_memory()
    network = NetworkConfig("alexnet", width=options.width)
    steps = {way.name: make_step(way, network, options.batch) for way in VARIANTS}
    rates = measure(steps, options.rounds, options.repeats, options.batch)
    rows = summarize(rates)
    try:
        if options.json:
            figures = {
                "network": "alexnet, 1,000 classes, 227 pixels",
                "width": options.width,
                "batch": options.batch,
                "bf16_in_hardware": has_bf16(pick_device()),
                "ways": rows,
                "rounds": rates,
                **provenance.describe_run(("torch", "numpy", "pillow")),
            }
            files.write_text(options.json, json.dumps(figures, indent=2) + "\n")
    except TrainingError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
