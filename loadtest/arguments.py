"""The options that the load test's commands share, and what they come to."""

import argparse
import math
import os
import time
from pathlib import Path

from alexnet_triton.client.arguments import add_server_options, build_config
from alexnet_triton.client.config import Config, parse_address
from alexnet_triton.common.command import Parser
from alexnet_triton.loadtest.cases import Case, Target, prepare
from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.loadtest.measure import Setup
from alexnet_triton.loadtest.replay import Replay
from alexnet_triton.loadtest.summary import tracked
from alexnet_triton.loadtest.workload import Plan, Users, Workload

PROGRAM = "alexnet-triton loadtest"
EXIT_CODES = """exit codes: 0 done, and every objective met; 1 an objective was missed, or the new version is slower;
2 usage, images or results; 3 the server; 4 the figures decide nothing (the generator was the bottleneck, or too few
pairs); 130 ended by Ctrl-C, with the figures until then"""
UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def add_shared_options(parser: Parser, duration: str | None, warmup: str = "2s", repository: bool = True) -> None:
    """What is tested, with which images, how long, and where results go.

    Args:
        duration, warmup: their defaults; without a duration, the command has neither option.
        repository: whether it starts a fresh server on one.
    """
    add_server_options(parser)
    if repository:
        parser.add_argument("--repository", type=Path, metavar="FOLDER", help="start a fresh server on it, not --url")
    _add_requests(parser)
    if duration:
        add = parser.add_argument_group("time").add_argument
        add("--duration", type=seconds, default=duration, metavar="TIME", help="30s, 5m, 1h (default: %(default)s)")
        add("--warmup", type=seconds, default=warmup, metavar="TIME", help="before it, left out (default: %(default)s)")
    add = parser.add_argument_group("output").add_argument
    folder, what = Path("artifacts/loadtest", time.strftime("%Y%m%d-%H%M%S")), "(default: artifacts/loadtest/TIME)"
    add("--output", type=Path, default=folder, metavar="FOLDER", help=f"result and report {what}")
    add("--json", type=Path, metavar="FILE", help="the result once more, there")
    add("--title", default="", help="of the report")
    add("--no-report", action="store_true", help="no page and pictures")


def _add_requests(parser: Parser) -> None:
    add = parser.add_argument_group("requests").add_argument
    add("--images", type=Path, default=Path("artifacts/pictures"), metavar="FOLDER")
    add("--limit", type=int, default=200, metavar="N", help="images held in memory (default: %(default)s)")
    add("--answers", type=Path, metavar="FILE", help="right answers, of alexnet-classify --format json (default: ask)")
    add("--send", choices=("auto", "encoded", "pixels"), default="auto", help="as the client's --send")
    add("--batch", type=int, default=1, metavar="N", help="images a request (default: %(default)s)")
    priorities = "Triton's, mixed: 1:0.2,2:0.8 (default: the model's)"
    add("--priorities", default="0", metavar="LEVEL:WEIGHT,...", help=priorities)
    add("--connections", type=int, default=1024, metavar="N", help="HTTP, at most (default: %(default)s)")
    add("--give-up", type=seconds, default=10.0, metavar="TIME", help="on a request, after 10s")
    add("--seed", type=int, default=0, metavar="N", help="of images, priorities and arrivals")


async def prepare_target(arguments: argparse.Namespace, url: str | None) -> tuple[Target, list[Case]]:
    """The model and the images of the command line, as `cases.prepare`; `url` is a fresh server's address."""
    config = client_config(arguments, url)
    return await prepare(config, arguments.images, arguments.limit, arguments.seed, arguments.answers, tracked)


def client_config(arguments: argparse.Namespace, url: str | None = None) -> Config:
    """How the server is reached: by HTTP where nothing else is said, as that costs the generator least.

    Raises:
        UsageError: an address or option that cannot be.
    """
    fallback = f"http://127.0.0.1:{os.environ.get('HTTP_PORT', '8000')}"
    own = argparse.Namespace(**{**vars(arguments), "url": [url] if url else arguments.url or [fallback]})
    own.batch, own.retries, own.top, own.concurrency, own.priority = 1, 0, 1, 1, 0
    config = build_config(own)
    parse_address(config.addresses[0])
    return config


def setup_of(arguments: argparse.Namespace, load: Plan | Replay | Users) -> Setup:
    """How the load is put on.

    Raises:
        SettingError: numbers that cannot be.
    """
    if arguments.limit < 1 or arguments.connections < 1:
        raise SettingError("--limit and --connections are 1 or more")
    workload = Workload(arguments.batch, parse_priorities(arguments.priorities), arguments.seed)
    return Setup(load, workload, arguments.connections, arguments.give_up)


def load_of(arguments: argparse.Namespace) -> Plan | Users:
    """The open loop of --rate, or the closed loop of --users.

    Raises:
        SettingError: neither, both, or numbers that cannot be.
    """
    if (arguments.rate is None) == (arguments.users is None):
        raise SettingError("give --rate R for the open loop, or --users N for the closed one")
    if arguments.rate is not None:
        return Plan(arguments.rate, arguments.duration, arguments.warmup, arguments.arrivals, arguments.shape)
    return Users(arguments.users, arguments.duration, arguments.warmup, arguments.think)


def seconds(text: str) -> float:
    """An argument's type, a time in seconds: 250ms, 30s, 5m, 1h, or plain seconds."""
    unit = next((each for each in UNITS_S if text.endswith(each) and text.removesuffix(each)[-1:].isdigit()), "")
    value = _number(text.removesuffix(unit)) * UNITS_S.get(unit, 1.0)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give 250ms, 30s, 5m or 1h")
    return value


def percent(text: str) -> float:
    """An argument's type, a fraction of 1: 5% or 0.05."""
    value = _number(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1.0)
    if not 0 <= value < 10:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction: give 5% or 0.05")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_priorities(text: str) -> dict[int, float]:
    """Levels and weights.

    Raises:
        SettingError: text that holds none.
    """
    try:
        pairs = [part.partition(":") for part in text.split(",")]
        levels = {int(level): float(weight or 1.0) for level, _, weight in pairs}
    except ValueError:
        levels = {}
    if not levels or min(levels) < 0 or not all(0 < weight < 1e9 for weight in levels.values()):
        raise SettingError(f"--priorities {text!r}: give levels and weights, as in 1:0.2,2:0.8")
    return levels
