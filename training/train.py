"""Train a network: python -m training.train --data fashion-mnist --budget 300."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from training import checkpoint
from training.augment import random_cut
from training.checkpoint import Checkpoint
from training.data import Dataset, batches, center_cut, open_dataset, pixel_statistics, shuffled
from training.device import has_bf16, keep_freed_memory, mixed_precision, pick_device, place
from training.errors import TrainingError
from training.evaluate import Accuracy, evaluate
from training.model import INPUT_SIZE, AlexNet, NetworkConfig, Normalize, initialize
from training.recipe import RECIPES, Recipe


@dataclass(frozen=True)
class State:
    """Where a run stands."""

    progress: float  # 0 to 1
    images: int
    loss: float
    waited_s: float  # for data, in all


Report = Callable[[State], None]


def fit(
    network: AlexNet,
    normalize: Normalize,
    dataset: Dataset,
    recipe: Recipe,
    budget_s: float,
    report: Report = lambda state: None,
) -> State:
    """Train `network` in place until `budget_s` seconds have passed; at least one step is made."""
    device = pick_device()
    place(network, device)
    network.train()
    normalize.to(device)
    optimizer = _optimizer(network, recipe)
    start = time.perf_counter()
    state = State(0.0, 0, float("nan"), 0.0)
    for images, labels, waited_s in _waiting(_training_batches(network, dataset, recipe)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(state.progress)
        with mixed_precision(device):
            logits = network(normalize(torch.from_numpy(images).to(device)))
        targets = torch.from_numpy(labels).to(device)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress = min((time.perf_counter() - start) / budget_s, 1.0)
        state = State(progress, state.images + len(labels), loss.item(), state.waited_s + waited_s)
        report(state)
        if progress >= 1.0:
            break
    return state


def _optimizer(network: AlexNet, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused: one pass over the 58 million weights rather than one for each of the formula's operations."""
    parameters, decay = network.parameters(), recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, 0.0, betas=(recipe.momentum, 0.95), weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, 0.0, momentum=recipe.momentum, weight_decay=decay, fused=True)


def _training_batches(network: AlexNet, dataset: Dataset, recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    count = len(dataset.train.labels)
    size = network.config.input_size
    chunks = shuffled(count, min(recipe.batch, count), recipe.seed)
    return batches(dataset.train, chunks, random_cut(size, recipe.seed) if recipe.augment else center_cut(size))


def _waiting(
    loader: Iterator[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Each batch with the seconds that it was waited for."""
    while True:
        start = time.perf_counter()
        images, labels = next(loader)
        yield images, labels, time.perf_counter() - start


def train(dataset: Dataset, network_name: str, recipe: Recipe, budget_s: float, progress: Progress) -> Checkpoint:
    """Train on `dataset.train` for `budget_s` seconds, evaluate on all of `dataset.test`."""
    torch.manual_seed(recipe.seed)
    keep_freed_memory()
    network = AlexNet(NetworkConfig(network_name, len(dataset.classes), dropout=recipe.dropout))
    initialize(network, recipe.initialization)
    mean, std = pixel_statistics(dataset.train)
    normalize = Normalize(mean, std)
    start = time.perf_counter()
    state = fit(network, normalize, dataset, recipe, budget_s, _reporter(progress))
    seconds = time.perf_counter() - start
    measured = _evaluate(network, normalize, dataset, progress)
    metrics = {
        **asdict(measured),
        "precision": "bf16" if has_bf16(pick_device()) else "fp32",
        "trained_images": state.images,
        "seconds": round(seconds, 1),
        "images_per_second": round(state.images / seconds, 1),
        "waited_for_data_s": round(state.waited_s, 1),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    return Checkpoint(network.config, weights, dataset.classes, mean, std, dataset.name, asdict(recipe), metrics)


def _reporter(progress: Progress) -> Report:
    task = progress.add_task("training", total=1.0, note="")
    start = time.perf_counter()

    def report(state: State) -> None:
        rate = state.images / (time.perf_counter() - start)
        note = f"loss {state.loss:.3f}, {state.images:,} images, {rate:.0f}/s"
        progress.update(task, completed=state.progress, note=note)

    return report


def _evaluate(network: AlexNet, normalize: Normalize, dataset: Dataset, progress: Progress) -> Accuracy:
    task = progress.add_task("testing", total=len(dataset.test.labels), note="")
    return evaluate(network, normalize, dataset.test, lambda images: progress.advance(task, images))


def progress_bar() -> Progress:
    """A bar with its note and the time left, on stderr."""
    from rich.console import Console

    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist, or a folder with train/ and test/")
    parser.add_argument("--data-dir", type=Path, help="folder that holds Fashion-MNIST's archives")
    parser.add_argument("--network", choices=INPUT_SIZE, default="alexnet")
    parser.add_argument("--recipe", choices=RECIPES, default="demo")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS", help="training time (default 300)")
    parser.add_argument("--batch", type=int, help="images a step, instead of the recipe's")
    parser.add_argument("--output", type=Path, default=Path("artifacts/checkpoint.pt"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    recipe = RECIPES[options.recipe]
    if options.batch:
        recipe = replace(recipe, batch=options.batch)
    try:
        dataset = open_dataset(options.data, options.data_dir)
        with progress_bar() as progress:
            trained = train(dataset, options.network, recipe, options.budget, progress)
        checkpoint.save(trained, options.output)
    except (TrainingError, OSError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    metrics = trained.metrics
    print(
        f"{options.network} on {dataset.name}: top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f} "
        f"on {metrics['images']:,} test images; trained {metrics['seconds']:.0f} s, "
        f"{metrics['images_per_second']:.0f} images/s ({metrics['precision']}), "
        f"waited {metrics['waited_for_data_s']:.1f} s for data; {options.output}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
