"""alexnet-triton loadtest run: one load, its figures, and the verdict on them."""

import argparse
import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from alexnet_triton.loadtest.arguments import add_shared_options, load_of, prepare_target, seconds, setup_of
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.loadtest.measure import Measured, Setup, measure
from alexnet_triton.loadtest.replay import Recording, Replay, plan_replay, read_log
from alexnet_triton.loadtest.report import save_and_show
from alexnet_triton.loadtest.results import (
    CODES,
    INTERRUPTED,
    describe_target,
    judge,
    parse_objectives,
    prepare_folder,
    verdict,
)
from alexnet_triton.loadtest.summary import error_console, load_words, show_run, waiting
from alexnet_triton.loadtest.variants import fresh_server
from alexnet_triton.loadtest.workload import Arrivals, Plan, Shape, Users

DURATION, WARMUP = "30s", "2s"  # of what is not recorded


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("run", help="one load: open loop with --rate or --replay, closed loop with --users")
    add = parser.add_argument_group("load").add_argument
    add("--rate", type=float, metavar="R", help="open loop: requests a second, sent whatever the server does")
    add("--arrivals", choices=get_args(Arrivals), default="poisson", help="of the open loop (default: %(default)s)")
    add("--shape", choices=get_args(Shape), default="flat", help="of the rate over time (default: %(default)s)")
    add("--users", type=int, metavar="N", help="closed loop: requests in flight")
    add("--think", type=float, default=0.0, metavar="SECONDS", help="of a user between two requests")
    add("--replay", type=Path, metavar="FILE", help="open loop: at the moments of the gateway's log, or its .gz")
    add("--speed", type=float, metavar="N", help="of --replay: N times as fast as recorded (default: 1)")
    add("--slo", default="", metavar="p99=100ms,errors=0.1%%,rate=200", help="decide the exit code")
    add = parser.add_argument_group("time").add_argument
    add("--duration", type=seconds, metavar="TIME", help=f"30s, 5m, 1h (default: {DURATION}; of --replay, to its end)")
    warmup = f"left out of the figures (default: {WARMUP} before it; of --replay none, else its beginning)"
    add("--warmup", type=seconds, metavar="TIME", help=warmup)
    add_shared_options(parser, None)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, save, show; the exit code is the verdict's."""
    objectives = parse_objectives(arguments.slo)
    setup = setup_of(arguments, _load(arguments))
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


def _load(arguments: argparse.Namespace) -> Plan | Replay | Users:
    """What --rate, --users or --replay asks for.

    Raises:
        SettingError: none of them or several, or numbers that cannot be.
    """
    if [arguments.rate, arguments.users, arguments.replay].count(None) != 2:
        raise SettingError("give --rate R for the open loop, or --users N for the closed one, or --replay FILE")
    if arguments.replay:
        return _replay(arguments)
    if arguments.speed is not None:
        raise SettingError(f"--speed {arguments.speed:g} is of --replay FILE; give --rate R for more a second")
    arguments.duration = seconds(DURATION) if arguments.duration is None else arguments.duration
    arguments.warmup = seconds(WARMUP) if arguments.warmup is None else arguments.warmup
    return load_of(arguments)


def _replay(arguments: argparse.Namespace) -> Replay:
    recording = read_log(arguments.replay)
    speed = 1.0 if arguments.speed is None else arguments.speed
    load = plan_replay(recording, arguments.replay, speed, arguments.duration, arguments.warmup or 0.0)
    if recording.damaged:
        error_console().print(_damage(arguments.replay, recording), markup=False)
    return load


def _damage(file: Path, recording: Recording) -> str:
    return (
        f"{file}: {recording.damaged:,} of {recording.lines:,} lines are not the gateway's and are left out, "
        f"the first is line {recording.first_damaged:,}"
    )


async def _measure(arguments: argparse.Namespace, url: str | None, setup: Setup) -> tuple[Target, Measured]:
    target, cases = await prepare_target(arguments, url)
    with waiting(load_words(setup.describe()), setup.load.warmup_s + setup.load.duration_s):
        return target, await measure(target, cases, setup, arguments.seed)
