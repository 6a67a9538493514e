"""The command `alexnet-triton train`: its options, and the run that they describe."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexnet_triton.common.command import Parser, finish, fraction, positive_float, positive_int
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import add_data_options, open_dataset
from alexnet_triton.training.device import PRECISIONS, join
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import ACTIVATIONS, INPUT_SIZE, NetworkConfig
from alexnet_triton.training.recipe import RECIPES, Recipe
from alexnet_triton.training.run import RunConfig, TrainingRun

PROG = "alexnet-triton train"
DESCRIPTION = """Train a network.

Several processes or GPUs: torchrun --nproc-per-node 2 -m alexnet_triton train ...; --batch is over all of them.
Beside the checkpoint: .json, .epochs.csv, .steps.csv, .curves.png, .tensorboard/, and during the run .state.pt.
Exit codes: 0 trained; 1 bad data, checkpoint or disk; 2 wrong command line; 130 stopped by a signal, state saved.
"""


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    return finish(PROG, lambda: _run(options))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--recipe", choices=RECIPES, default="demo")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive_int, help="default: the recipe's (demo: 300 seconds)")
    length.add_argument("--budget", type=positive_float, metavar="SECONDS", help="training time, instead of epochs")
    parser.add_argument("--output", type=Path, default=Path("artifacts/checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="continue the stopped run of --output")
    parser.add_argument("--log-every", type=positive_int, default=50, metavar="STEPS", help="steps a row of .steps.csv")
    _network_options(parser.add_argument_group("network"))
    _recipe_options(parser.add_argument_group("instead of the recipe's"))
    options = parser.parse_args(words)
    if options.network == "alexnet_owt" and not (options.lrn and options.groups == 2):
        parser.error("alexnet_owt has neither LRN nor groups; leave out --no-lrn and --groups")
    if 1.0 in (options.dropout, options.holdout):
        parser.error("--dropout and --holdout are fractions below 1")
    return options


def _network_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--network", choices=INPUT_SIZE, default="alexnet")
    group.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    group.add_argument("--groups", type=int, choices=(1, 2), default=2, help="of convolutions 2, 4 and 5")
    group.add_argument("--width", type=positive_float, default=1.0, help="times the published channels and units")
    group.add_argument("--no-lrn", dest="lrn", action="store_false", help="no local response normalisation")
    group.add_argument("--no-overlap", dest="overlap", action="store_false", help="pooling windows of 2, not 3")


def _recipe_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=positive_int, help="images a step over all processes; scales the learning rate")
    group.add_argument("--learning-rate", type=positive_float, help="for this batch, not scaled")
    group.add_argument("--dropout", type=fraction)
    group.add_argument("--initialization", choices=("paper", "he"))
    group.add_argument("--precision", choices=("auto", *PRECISIONS))
    group.add_argument("--holdout", type=fraction, help="fraction of the training images, measured after each epoch")
    group.add_argument("--seed", type=int)


def make_config(options: argparse.Namespace, classes: int, processes: int) -> RunConfig:
    recipe = make_recipe(options, processes)
    ideas = {name: getattr(options, name) for name in ("activation", "lrn", "overlap", "groups", "width")}
    network = NetworkConfig(options.network, classes, dropout=recipe.dropout, **ideas)
    return RunConfig(network, recipe, options.output, options.resume, options.log_every)


def make_recipe(options: argparse.Namespace, processes: int) -> Recipe:
    """The named recipe, changed by the options. Without --batch, each process takes the recipe's batch."""
    recipe = RECIPES[options.recipe]
    recipe = recipe.with_batch(options.batch or recipe.batch * processes)
    names = ("learning_rate", "dropout", "initialization", "precision", "holdout", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = replace(recipe, **given)
    if options.epochs:
        return replace(recipe, epochs=options.epochs, budget_s=None)
    return replace(recipe, budget_s=options.budget) if options.budget else recipe


def _run(options: argparse.Namespace) -> None:
    with join() as group:
        dataset = open_dataset(options.data, options.data_dir)
        config = make_config(options, len(dataset.classes), group.world)
        with progress_bar(group.is_first) as progress:
            trained = TrainingRun(config, dataset, group, progress).train()
    if group.is_first:
        print(_summary(trained, options.output))


def _summary(trained: Checkpoint, output: Path) -> str:
    metrics = trained.metrics
    return (
        f"{trained.network.name} on {trained.data}: top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f} "
        f"on {metrics['images']:,} test images; trained {metrics['seconds']:.0f} s, "
        f"{metrics['images_per_second']:.0f} images/s ({metrics['precision']}), "
        f"waited {metrics['waited_for_data_s']:.1f} s for data; {output}"
    )
