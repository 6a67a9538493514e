"""alexnet-triton loadtest run: one load, its figures, and the verdict on them."""

import argparse
import asyncio
from dataclasses import asdict
from typing import Any, get_args

from alexnet_triton.loadtest.arguments import add_shared_options, load_of, prepare_target, setup_of
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.measure import Measured, Setup, measure
from alexnet_triton.loadtest.objectives import judge, parse_objectives, verdict
from alexnet_triton.loadtest.report import save_and_show
from alexnet_triton.loadtest.results import CODES, INTERRUPTED, describe_target, prepare_folder
from alexnet_triton.loadtest.summary import load_words, show_run, waiting
from alexnet_triton.loadtest.variants import fresh_server
from alexnet_triton.loadtest.workload import Arrivals, Shape


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("run", help="one load: open loop with --rate, closed loop with --users")
    add = parser.add_argument_group("load").add_argument
    add("--rate", type=float, metavar="R", help="open loop: requests a second, sent whatever the server does")
    add("--arrivals", choices=get_args(Arrivals), default="poisson", help="of the open loop (default: %(default)s)")
    add("--shape", choices=get_args(Shape), default="flat", help="of the rate over time (default: %(default)s)")
    add("--users", type=int, metavar="N", help="closed loop: requests in flight")
    add("--think", type=float, default=0.0, metavar="SECONDS", help="of a user between two requests")
    add("--slo", default="", metavar="p99=100ms,errors=0.1%%,rate=200", help="decide the exit code")
    add_shared_options(parser, "30s")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, save, show; the exit code is the verdict's."""
    objectives = parse_objectives(arguments.slo)
    setup = setup_of(arguments, load_of(arguments))
    prepare_folder(arguments.output)
    with fresh_server(arguments) as url:
        target, measured = asyncio.run(_measure(arguments, url, setup))
    judged = judge(objectives, measured.objectives)
    save_and_show(
        "run",
        arguments,
        f"{target.model} on {target.address}",
        show_run,
        target=describe_target(target, arguments),
        load=setup.describe(),
        measured=asdict(measured),
        verdict=[asdict(each) for each in judged],
    )
    if measured.interrupted:
        return INTERRUPTED
    return CODES[verdict(judged, measured.generator.limits)]


async def _measure(arguments: argparse.Namespace, url: str | None, setup: Setup) -> tuple[Target, Measured]:
    target, cases = await prepare_target(arguments, url)
    with waiting(load_words(setup.describe()), setup.load.warmup_s + setup.load.duration_s):
        return target, await measure(target, cases, setup, arguments.seed)
