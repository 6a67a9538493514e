"""Train a network: python -m alexnet_triton.training.train --data fashion-mnist --recipe fast --epochs 5.

Several processes or GPUs: torchrun --nproc-per-node 2 -m alexnet_triton.training.train ...; --batch is over all of them.
Beside the checkpoint: .epochs.csv, .steps.csv, .curves.png, .tensorboard/, and while it runs .state.pt for --resume.
Exit codes: 0 trained; 1 bad data, checkpoint or disk; 2 wrong command line; 130 stopped by a signal, state saved.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import open_dataset
from alexnet_triton.training.device import PRECISIONS, Group, join
from alexnet_triton.training.errors import InterruptedRunError, TrainingError
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import ACTIVATIONS, INPUT_SIZE, NetworkConfig
from alexnet_triton.training.recipe import RECIPES, Recipe
from alexnet_triton.training.run import RunConfig, TrainingRun


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.training.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", default="fashion-mnist", help="fashion-mnist, cifar10, or a folder with train/ and test/"
    )
    parser.add_argument("--data-dir", type=Path, help="folder that holds the archives of fashion-mnist or cifar10")
    parser.add_argument("--recipe", choices=RECIPES, default="demo")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive_int, help="default: the recipe's (demo: 300 seconds)")
    length.add_argument("--budget", type=positive_float, metavar="SECONDS", help="training time, instead of epochs")
    parser.add_argument("--output", type=Path, default=Path("artifacts/checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="go on with the run of --output that was stopped")
    parser.add_argument("--log-every", type=positive_int, default=50, metavar="STEPS", help="rows of .steps.csv")
    _network_options(parser.add_argument_group("network"))
    _recipe_options(parser.add_argument_group("instead of the recipe's"))
    options = parser.parse_args(arguments)
    if options.network == "alexnet_owt" and not (options.normalization and options.groups == 2):
        parser.error("alexnet_owt has neither normalisation nor groups to switch off")
    return options


def _network_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--network", choices=INPUT_SIZE, default="alexnet")
    group.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    group.add_argument("--groups", type=int, choices=(1, 2), default=2, help="of convolutions 2, 4 and 5")
    group.add_argument("--width", type=positive_float, default=1.0, help="times the published channels and units")
    group.add_argument("--no-normalization", dest="normalization", action="store_false")
    group.add_argument("--no-overlap", dest="overlap", action="store_false", help="pooling windows of 2, not 3")


def _recipe_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=positive_int, help="images a step over all processes; scales the learning rate")
    group.add_argument("--learning-rate", type=positive_float, help="for this batch, not scaled")
    group.add_argument("--dropout", type=fraction)
    group.add_argument("--initialization", choices=("paper", "he"))
    group.add_argument("--precision", choices=("auto", *PRECISIONS))
    group.add_argument("--holdout", type=fraction, help="part of the training images that is measured after each epoch")
    group.add_argument("--seed", type=int)


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def make_recipe(options: argparse.Namespace, processes: int) -> Recipe:
    """The named recipe with what the command line says otherwise; its batch is the images of one process."""
    recipe = RECIPES[options.recipe]
    recipe = recipe.with_batch(options.batch or recipe.batch * processes)
    names = ("learning_rate", "dropout", "initialization", "precision", "holdout", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = replace(recipe, **given)
    if options.epochs:
        return replace(recipe, epochs=options.epochs, budget_s=None)
    return replace(recipe, budget_s=options.budget) if options.budget else recipe


def make_config(options: argparse.Namespace, classes: int, processes: int) -> RunConfig:
    recipe = make_recipe(options, processes)
    network = NetworkConfig(
        options.network,
        classes,
        activation=options.activation,
        dropout=recipe.dropout,
        normalization=options.normalization,
        overlap=options.overlap,
        groups=options.groups,
        width=options.width,
    )
    return RunConfig(network, recipe, options.output, options.resume, options.log_every)


def train(options: argparse.Namespace, group: Group) -> Checkpoint:
    dataset = open_dataset(options.data, options.data_dir)
    config = make_config(options, len(dataset.classes), group.world)
    with progress_bar(group.is_first) as progress:
        return TrainingRun(config, dataset, group, progress).train()


def summary(trained: Checkpoint, output: Path) -> str:
    metrics = trained.metrics
    return (
        f"{trained.network.name} on {trained.data}: top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f} "
        f"on {metrics['images']:,} test images; trained {metrics['seconds']:.0f} s, "
        f"{metrics['images_per_second']:.0f} images/s ({metrics['precision']}), "
        f"waited {metrics['waited_for_data_s']:.1f} s for data; {output}"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        with join() as group:
            trained = train(options, group)
    except (TrainingError, OSError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 130 if isinstance(error, InterruptedRunError) else 1
    except KeyboardInterrupt:
        print("training: stopped at once; --resume goes on from the last epoch", file=sys.stderr)
        return 130
    if group.is_first:
        print(summary(trained, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
