"""The command `alexnet-triton train`: its options, and the run that they describe."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet_triton.common.command import Parser, finish, fraction, positive_float, positive_int, printable
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import NAMED, add_data_options, open_dataset
from alexnet_triton.training.device import PRECISIONS, join, leave
from alexnet_triton.training.finetune import Initial, load_initial
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import ACTIVATIONS, INPUT_SIZE, NetworkConfig
from alexnet_triton.training.recipe import RECIPES, Recipe
from alexnet_triton.training.run import RunConfig, TrainingRun
from alexnet_triton.training.survey import print_check, short_summary

PROG = "alexnet-triton train"
NETWORK_OPTIONS = {  # the setting of a NetworkConfig by its option
    "network": "--network",
    "activation": "--activation",
    "groups": "--groups",
    "width": "--width",
    "lrn": "--no-lrn",
    "overlap": "--no-overlap",
}
DESCRIPTION = """Train a network.

Several processes or GPUs: torchrun --nproc-per-node 2 -m alexnet_triton train ...; --batch is over all of them.
Beside the checkpoint: .json, .epochs.csv, .steps.csv, .curves.png, .tensorboard/, and during the run .state.pt.
Exit codes: 0 trained, or --check finds that it can be; 1 bad data, checkpoint or disk; 2 wrong command line;
130 stopped by a signal, state saved.
"""


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    return leave(finish(PROG, lambda: _run(options)))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--check", action="store_true", help="look at the folder of --data, and train nothing")
    parser.add_argument(
        "--init", metavar="CHECKPOINT", help="start from a trained network; imagenet: published weights"
    )
    parser.add_argument("--recipe", choices=RECIPES, help="default: demo; with --init finetune")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive_int, help="default: the recipe's (demo: 300 seconds)")
    length.add_argument("--budget", type=positive_float, metavar="SECONDS", help="training time, instead of epochs")
    parser.add_argument("--output", type=Path, default=Path("artifacts/checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="continue the stopped run of --output")
    parser.add_argument("--log-every", type=positive_int, default=50, metavar="STEPS", help="steps a row of .steps.csv")
    _network_options(parser.add_argument_group("network"))
    _recipe_options(parser.add_argument_group("instead of the recipe's"))
    options = parser.parse_args(words)
    options.recipe = options.recipe or ("finetune" if options.init else "demo")
    if refusal := _refusal(options):
        parser.error(refusal)
    return options


def _refusal(options: argparse.Namespace) -> str | None:
    """What is wrong with options that are right one by one."""
    given = _given(options, NETWORK_OPTIONS)
    if options.init and given:
        return f"--init brings its network; leave out {', '.join(NETWORK_OPTIONS[name] for name in given)}"
    if options.init and Path(options.init).absolute() == options.output.absolute():
        return f"--init {options.init} would be overwritten; give another --output"
    if options.network == "alexnet_owt" and (options.lrn is False or options.groups == 1):
        return "alexnet_owt has neither LRN nor groups; leave out --no-lrn and --groups"
    if 1.0 in (options.dropout, options.holdout):
        return "--dropout and --holdout are fractions below 1"
    if options.check and options.data in NAMED:
        return f"--check looks at a folder of photographs, and {options.data} is none; give --data FOLDER"
    return None


def _given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _network_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--network", choices=INPUT_SIZE, help="default: alexnet")
    group.add_argument("--activation", choices=ACTIVATIONS, help="default: relu")
    group.add_argument("--groups", type=int, choices=(1, 2), help="of convolutions 2, 4 and 5 (default 2)")
    group.add_argument("--width", type=positive_float, help="times the published channels and units")
    group.add_argument(
        "--no-lrn", dest="lrn", action="store_false", default=None, help="no local response normalisation"
    )
    windows = "pooling windows of 2, not 3"
    group.add_argument("--no-overlap", dest="overlap", action="store_false", default=None, help=windows)


def _recipe_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=positive_int, help="images a step over all processes; scales the learning rate")
    group.add_argument("--learning-rate", type=positive_float, help="for this batch, not scaled")
    group.add_argument("--dropout", type=fraction)
    group.add_argument("--initialization", choices=("paper", "he"))
    group.add_argument("--precision", choices=("auto", *PRECISIONS))
    group.add_argument("--holdout", type=fraction, help="fraction of the training images, measured after each epoch")
    group.add_argument("--seed", type=int)


def make_config(options: argparse.Namespace, classes: int, processes: int, initial: Initial | None = None) -> RunConfig:
    recipe = make_recipe(options, processes)
    if initial:
        network = initial.network(classes, recipe.dropout)
    else:
        settings = {"name": options.network or "alexnet", **_given(options, list(NETWORK_OPTIONS)[1:])}
        network = NetworkConfig(classes=classes, dropout=recipe.dropout, **settings)
    return RunConfig(network, recipe, options.output, options.resume, options.log_every, initial)


def make_recipe(options: argparse.Namespace, processes: int) -> Recipe:
    """The named recipe, changed by the options. Without --batch, each process takes the recipe's batch."""
    recipe = RECIPES[options.recipe]
    recipe = recipe.with_batch(options.batch or recipe.batch * processes)
    names = ("learning_rate", "dropout", "initialization", "precision", "holdout", "seed")
    recipe = replace(recipe, **_given(options, names))
    if options.epochs:
        return replace(recipe, epochs=options.epochs, budget_s=None)
    return replace(recipe, budget_s=options.budget) if options.budget else recipe


def _run(options: argparse.Namespace) -> None:
    if options.check:
        print_check(open_dataset(options.data))
        return
    with join() as group:
        dataset = open_dataset(options.data, options.data_dir)
        initial = load_initial(options.init, group) if options.init else None
        if group.is_first and options.data not in NAMED and not options.resume:
            print(printable(short_summary(dataset)), file=sys.stderr, flush=True)
        config = make_config(options, len(dataset.classes), group.world, initial)
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
