"""How fast training steps of the 2012 network are, computed in several ways: `python docs/step_speed.py`.

Under torchrun the processes share each step by DistributedDataParallel, and train apart in turn, for comparison.

A step is forward, backward and optimiser on pixels that are in memory already. The variants take turns, so that
whatever else the machine does slows all of them; ratios are taken within a round. Rates are in images a second.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from alexnet_triton.common import files, provenance
from alexnet_triton.common.command import Parser, finish, positive_float, positive_int
from alexnet_triton.training import device as devices
from alexnet_triton.training.device import Group, has_bf16, keep_freed_memory, mixed_precision, pick_device, place
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import AlexNet, LocalResponseNorm, NetworkConfig, Normalize, initialize
from alexnet_triton.training.recipe import RECIPES, make_optimizer

PROG = "step_speed"
RATIO = "bf16_channels_last_is_times"

Step = Callable[[], float]  # returns the loss
ALONE = Group()


@dataclass(frozen=True)
class Variant:
    """One way to compute a step."""

    name: str
    precision: str
    channels_last: bool = True
    own_lrn: bool = True  # else PyTorch's LocalResponseNorm
    compiled: bool = False  # by torch.compile
    together: bool = True  # with the other processes, if any


OURS = Variant("bf16, channels_last", "bf16")
VARIANTS = (
    OURS,
    Variant("fp32, channels_first", "fp32", channels_last=False),
    Variant("bf16, channels_last, PyTorch's LocalResponseNorm", "bf16", own_lrn=False),
)
ON_A_GPU = (  # beside them; not run: no GPU
    Variant("bf16, channels_first", "bf16", channels_last=False),
    Variant("fp16, channels_last", "fp16"),
    Variant("fp16, channels_first", "fp16", channels_last=False),
    Variant("bf16, channels_last, torch.compile", "bf16", compiled=True),
)
# Under torchrun.
TOGETHER = (OURS, Variant("bf16, channels_last, each process by itself", "bf16", together=False))
TOGETHER_ON_GPUS = (Variant("fp16, channels_last", "fp16"),)  # beside them; not run: no GPU


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Measure training steps: bf16 against fp32, and PyTorch's LRN.")
    parser.add_argument("--batch", type=positive_int, default=64, help="images a step and process (default 64)")
    parser.add_argument("--rounds", type=positive_int, default=7, help="measurements of each variant (default 7)")
    parser.add_argument("--repeats", type=positive_int, default=3, help="steps a measurement (default 3)")
    parser.add_argument("--width", type=positive_float, default=1.0, help="times the published channels and units")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args(words)
    return devices.leave(finish(PROG, lambda: _run(options)))


def _run(options: argparse.Namespace) -> None:
    keep_freed_memory()
    with devices.join() as group:
        steps, not_run = _make_steps(_variants(group), options, group)
        rates = measure(steps, options.rounds, options.repeats, options.batch * group.world)
        if not group.is_first:
            return
        rows = summarize(rates)
        if options.json:
            _write(options, group, {"variants": rows, "not_run": not_run, "rounds": rates})
        print(_table(rows))
        for name, reason in not_run.items():
            print(f"{name}: not run: {reason}")


def _variants(group: Group) -> tuple[Variant, ...]:
    on_gpu = pick_device().type == "cuda"
    if group.world > 1:
        return TOGETHER + (TOGETHER_ON_GPUS if on_gpu else ())
    return VARIANTS + (ON_A_GPU if on_gpu else ())


def _make_steps(
    variants: Sequence[Variant], options: argparse.Namespace, group: Group
) -> tuple[dict[str, Step], dict[str, str]]:
    """The variants' steps; and why one that is to be compiled cannot be, as without a C compiler."""
    network = NetworkConfig("alexnet", width=options.width)
    steps, not_run = dict[str, Step](), dict[str, str]()
    for variant in variants:
        step = make_step(variant, network, options.batch, group)
        try:
            if variant.compiled:
                step()
        except Exception as error:  # those of torch.compile share no base class
            not_run[variant.name] = next(iter(str(error).strip().splitlines()), type(error).__name__)
        else:
            steps[variant.name] = step
    return steps, not_run


def _write(options: argparse.Namespace, group: Group, measured: dict[str, Any]) -> None:
    figures = {
        "network": "alexnet, 1,000 classes, 227 pixels",
        "width": options.width,
        "batch": options.batch,
        "processes": group.world,
        "bf16_in_hardware": has_bf16(pick_device()),
        **measured,
        **provenance.describe_run(("torch", "numpy", "pillow")),
    }
    files.write_json(options.json, figures)


def make_step(variant: Variant, config: NetworkConfig, batch: int, group: Group = ALONE) -> Step:
    """A training step on random images, uint8 [batch, S, S, 3]: the same images and weights for every variant."""
    device, size = pick_device(), config.input_size
    torch.manual_seed(0)
    network = AlexNet(config)
    initialize(network, "he")
    if not variant.own_lrn:
        _use_pytorchs_lrn(network.features)
    network.to(device)
    if variant.channels_last:
        place(network, device)
    shared = group.wrap(network) if variant.together else network
    run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(shared) if variant.compiled else shared
    optimizer = make_optimizer(network, replace(RECIPES["fast"], learning_rate=1e-6))
    normalize = Normalize((127.0,) * 3, (60.0,) * 3).to(device)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, config.classes, (batch,), device=device)

    def step() -> float:
        with mixed_precision(device, variant.precision):
            pixels = normalize(images)
            logits = run(pixels if variant.channels_last else pixels.contiguous())
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()  # on a GPU, waits for all of the step

    return step


def _use_pytorchs_lrn(layers: nn.Sequential) -> None:
    for number, layer in enumerate(layers):
        if isinstance(layer, LocalResponseNorm):
            layers[number] = nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)


def measure(steps: dict[str, Step], rounds: int, repeats: int, batch: int) -> dict[str, list[float]]:
    """Images a second of each variant in each round, after one round that is not counted.

    Args:
        batch: images of a step, in all processes.
    """
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


def summarize(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row a variant: its rate, and how many times as fast `bf16, channels_last` is."""
    ours, rows = rates[OURS.name], []
    for name, values in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(ours, values, strict=True)]
        rows.append({"variant": name, "images_per_second": _spread(values), RATIO: _spread(ratios)})
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _table(rows: list[dict[str, Any]]) -> str:
    def cell(spread: dict[str, float]) -> str:
        return f"{spread['median']:7.2f} ({spread['least']:.2f} to {spread['most']:.2f})"

    lines = [f"{'images a second':<50}{'median (spread)':<30}bf16, channels_last is ... times as fast"]
    for row in rows:
        lines.append(f"{row['variant']:<50}{cell(row['images_per_second']):<30}{cell(row[RATIO])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
