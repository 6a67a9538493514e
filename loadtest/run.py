"""alexnet-triton loadtest run: one load, its figures, and the verdict on them."""

import argparse
import asyncio
import json
from dataclasses import asdict
from typing import Any, get_args

from alexnet_triton.common.files import write_json
from alexnet_triton.common.provenance import describe_command
from alexnet_triton.loadtest.arguments import (
    add_output,
    add_target,
    add_times,
    client_config,
    load_of,
    output_folder,
    setup_of,
)
from alexnet_triton.loadtest.cases import Target, prepare
from alexnet_triton.loadtest.measure import Measured, Setup, measure
from alexnet_triton.loadtest.objectives import judge, parse_objectives
from alexnet_triton.loadtest.results import NAME, Json, prepare_folder, wrap
from alexnet_triton.loadtest.summary import error_console, load_words, out_console, show_run, tracked, waiting
from alexnet_triton.loadtest.variants import fresh_server
from alexnet_triton.loadtest.workload import Arrivals, Shape

OK, MISSED, UNDECIDED, INTERRUPTED = 0, 1, 4, 130


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("run", help="one load: open loop with --rate, closed loop with --users")
    group = parser.add_argument_group("load")
    group.add_argument(
        "--rate", type=float, metavar="R", help="open loop: requests a second, sent whatever the server does"
    )
    group.add_argument(
        "--arrivals", choices=get_args(Arrivals), default="poisson", help="of the open loop (default: %(default)s)"
    )
    group.add_argument(
        "--shape",
        choices=get_args(Shape),
        default="flat",
        help="of the open loop's rate over time (default: %(default)s)",
    )
    group.add_argument("--users", type=int, metavar="N", help="closed loop: requests in flight")
    group.add_argument("--think", type=float, default=0.0, metavar="SECONDS", help="of a user between two requests")
    group.add_argument(
        "--slo", default="", metavar="p99=100ms,errors=0.1%,rate=200".replace("%", "%%"), help="decide the exit code"
    )
    add_times(parser, "30s")
    add_target(parser)
    add_output(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, save, show; the exit code is the verdict's."""
    objectives = parse_objectives(arguments.slo)
    setup = setup_of(arguments, load_of(arguments))
    folder = prepare_folder(output_folder(arguments))
    with fresh_server(arguments) as url:
        target, measured = asyncio.run(_measure(arguments, url, setup))
    judged = judge(objectives, measured.objectives)
    title = arguments.title or f"{target.model} on {target.address}"
    result = wrap(
        "run",
        describe_command(["alexnet-triton", "loadtest", *arguments.words]),
        title,
        target=describe_target(target, arguments),
        load=describe_load(setup),
        measured=measured.to_json(),
        verdict=[asdict(each) for each in judged],
    )
    save(result, folder, arguments)
    show_run(result, out_console())
    error_console().print(f"{folder}")
    if measured.interrupted:
        return INTERRUPTED
    missed = {each.name for each in judged if not each.met}
    if not missed:
        return OK
    # What the generator held up may be late, but it is not wrong.
    return MISSED if "errors" in missed or not measured.generator.limits else UNDECIDED


async def _measure(arguments: argparse.Namespace, url: str | None, setup: Setup) -> tuple[Target, Measured]:
    config = client_config(arguments, url)
    target, cases = await prepare(config, arguments.images, arguments.limit, arguments.seed, arguments.answers, tracked)
    with waiting(load_words(describe_load(setup)), setup.load.warmup_s + setup.load.duration_s):
        return target, await measure(target, cases, setup, arguments.seed)


def describe_target(target: Target, arguments: argparse.Namespace) -> Json:
    """What was asked."""
    return {
        "url": str(target.address),
        "model": target.model,
        "version": target.version,
        "steps": target.steps,
        "sends": target.signature.kind,
        "batch": arguments.batch,
        "priorities": arguments.priorities,
        "images": str(arguments.images),
        "seed": arguments.seed,
    }


def describe_load(setup: Setup) -> Json:
    """The load as plain values."""
    return {"loop": "open" if setup.is_open else "closed", **asdict(setup.load)}


def save(result: Json, folder: Any, arguments: argparse.Namespace) -> None:
    """Write the result, and the report beside it."""
    write_json(folder / NAME, result)
    if arguments.json:
        write_json(arguments.json, result)
    if not arguments.no_report:
        from alexnet_triton.loadtest.report import write_report  # matplotlib takes a second to import

        write_report(folder, [json.loads(json.dumps(result))])
