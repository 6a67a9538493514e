"""alexnet-triton loadtest compare OLD NEW: is the new version slower? Pairs of runs in alternation, and an interval."""

import argparse
import asyncio
import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from alexnet_triton.common.command import Parser
from alexnet_triton.loadtest.arguments import add_shared_options, load_of, percent, prepare_target, setup_of
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.errors import EndedError, SettingError, TargetError
from alexnet_triton.loadtest.measure import Measured, Setup, measure
from alexnet_triton.loadtest.recorder import LATENCIES
from alexnet_triton.loadtest.report import save_and_show
from alexnet_triton.loadtest.results import INTERRUPTED, MISSED, OK, UNDECIDED, Json, describe_target, prepare_folder
from alexnet_triton.loadtest.summary import tracked
from alexnet_triton.serving import Server

Decision = Literal["slower", "not slower", "undecided"]
EXIT_CODES = {"slower": MISSED, "not slower": OK, "undecided": UNDECIDED}

MOST_LIMITED = 0.1  # of the runs may be the generator's figures, which the estimate survives as it does noise


@dataclass(frozen=True)
class Estimate:
    """How much longer the new version takes, as a ratio: 1.1 is a tenth longer. `confidence` is the one reached."""

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out a ratio of 1."""
        return not self.low <= 1.0 <= self.high

    def decide(self, limit: float) -> Decision:
        """Whether it is slower by more than `limit`, a fraction of 1."""
        if self.low > 1 + limit:
            return "slower"
        return "not slower" if self.high <= 1 + limit else "undecided"


def estimate(ratios: Sequence[float], confidence: float) -> Estimate:
    """Hodges and Lehmann's estimate of paired ratios, new to old, all above 0, with Wilcoxon's interval.

    Source: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd edition, 3.2 and 3.3. The interval is
    exact for every symmetric distribution: one disturbed run does not decide, as it would in a mean.

    Raises:
        SettingError: too few pairs for the confidence.
    """
    pairs = len(ratios)
    cut = _cut(pairs, confidence)
    logs = [math.log(each) for each in ratios]
    averages = sorted((logs[i] + logs[j]) / 2 for i in range(pairs) for j in range(i, pairs))
    middle = (averages[(len(averages) - 1) // 2] + averages[len(averages) // 2]) / 2
    reached = 1 - 2 * sum(_rank_sums(pairs)[: cut + 1]) / 2**pairs
    return Estimate(math.exp(middle), math.exp(averages[cut]), math.exp(averages[-1 - cut]), reached, pairs)


def fewest_pairs(confidence: float) -> int:
    """Pairs without which no interval reaches the confidence."""
    return math.ceil(1 - math.log2(1 - confidence))


def _cut(pairs: int, confidence: float) -> int:
    """How many of the sorted averages may be left out at each end."""
    if not 0.5 <= confidence < 1:
        raise SettingError(f"--confidence {confidence:g}: give 0.5 to 0.999")
    if pairs < (needed := fewest_pairs(confidence)):
        needs = f"a confidence of {confidence:g} takes {needed} or more"
        raise SettingError(f"--pairs {pairs} --confidence {confidence:g}: {needs}")
    most = (1 - confidence) * 2**pairs
    return sum(2 * below <= most for below in itertools.accumulate(_rank_sums(pairs))) - 1


def _rank_sums(pairs: int) -> list[int]:
    """How many of the 2^n sign patterns have each sum of signed ranks."""
    counts = [1]
    for rank in range(1, pairs + 1):
        longer = counts + [0] * rank
        for total, count in enumerate(counts):
            longer[total + rank] += count
        counts = longer
    return counts


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser: Parser = commands.add_parser("compare", help="is NEW slower than OLD? pairs of runs, in alternation")
    parser.add_argument("old", metavar="OLD", help="a server's address, or a built repository to start one on")
    parser.add_argument("new", metavar="NEW", help="as OLD")
    add = parser.add_argument_group("comparison").add_argument
    add("--fail-if-slower", type=percent, metavar="5%%", help="exit with 1 when it is slower by more")
    add("--metric", choices=(*LATENCIES, "rate"), default="p50", help="that decides (default: p50)")
    add("--pairs", type=int, default=20, metavar="N", help="of runs (default: 20)")
    add("--confidence", type=float, default=0.99, metavar="P", help="of the interval (default: 0.99)")
    add("--rate", type=float, metavar="R", help="open loop: requests a second")
    add("--users", type=int, metavar="N", help="closed loop: requests in flight (default: 1)")
    add_shared_options(parser, "2s", "500ms", repository=False)
    parser.set_defaults(call=run, arrivals="poisson", shape="flat", think=0.0)


def run(arguments: argparse.Namespace) -> int:
    """Measure pairs, save, show; the exit code is the decision's."""
    if arguments.rate is None and arguments.users is None:
        arguments.users = 1
    setup = setup_of(arguments, load_of(arguments))
    estimate([1.0] * max(1, min(arguments.pairs, 10_000)), arguments.confidence)  # refuses before anything is measured
    prepare_folder(arguments.output)
    with ExitStack() as stack:
        urls = [_address(each, stack) for each in (arguments.old, arguments.new)]
        targets: list[Target] = []
        pairs: list[tuple[Measured, Measured]] = []
        with suppress(KeyboardInterrupt):  # between two loads
            asyncio.run(_measure_pairs(arguments, setup, urls, targets, pairs))
    if len(pairs) < fewest_pairs(arguments.confidence):
        raise EndedError(f"ended after {len(pairs)} pairs, which are too few to say anything")
    if any(each.failed or not each.right for pair in pairs for each in pair):
        raise TargetError("requests failed, so that times say little: see why with `alexnet-triton loadtest run`")
    values = [tuple(each.objectives[arguments.metric] for each in pair) for pair in pairs]
    if not all(value > 0 for pair in values for value in pair):
        raise TargetError("a run has no answer within its time: give a longer --duration")
    ratios = [old / new if arguments.metric == "rate" else new / old for old, new in values]
    found = estimate(ratios, arguments.confidence)
    limited = sum(bool(each.generator.limits) for pair in pairs for each in pair)
    decision = None if arguments.fail_if_slower is None else found.decide(arguments.fail_if_slower)
    if decision and limited > MOST_LIMITED * 2 * len(pairs):
        decision = "undecided"
    save_and_show(
        "compare",
        arguments,
        f"{arguments.old} and {arguments.new}",
        _show,
        targets=[describe_target(each, arguments) for each in targets],
        load=setup.describe(),
        metric=arguments.metric,
        values=values,
        ratios=ratios,
        estimate=asdict(found),
        limited=limited,
        limit=arguments.fail_if_slower,
        decision=decision,
        measured=[[asdict(each) for each in pair] for pair in pairs[:1]],
    )
    if len(pairs) < arguments.pairs:
        return INTERRUPTED
    return OK if decision is None else EXIT_CODES[decision]


def _address(text: str, stack: ExitStack) -> str:
    """The address of a server that runs, or of one that is started on a repository and runs until the end."""
    if "://" in text:
        return text
    if not Path(text).is_dir():
        raise SettingError(f"{text} is neither a server's address nor the folder of a built repository")
    server = stack.enter_context(Server(text, http_port=0, grpc_port=0, metrics_port=0))
    return f"http://{server.http_address}"


async def _measure_pairs(
    arguments: argparse.Namespace,
    setup: Setup,
    urls: list[str],
    targets: list[Target],
    pairs: list[tuple[Measured, Measured]],
) -> None:
    """Enter the two targets, and each pair as it is measured."""
    sides = [await prepare_target(arguments, url) for url in urls]
    targets += [target for target, _ in sides]
    for number in tracked(range(arguments.pairs), "pairs"):
        order = (0, 1) if number % 2 == 0 else (1, 0)  # what drifts in one direction favours neither
        done = {side: await measure(*sides[side], setup, arguments.seed + number) for side in order}
        if any(each.interrupted for each in done.values()):
            break
        pairs.append((done[0], done[1]))


def _show(result: Json, console: Console) -> None:
    unit, found = "/s" if result["metric"] == "rate" else " ms", Estimate(**result["estimate"])
    for old, new in result["values"]:
        console.print(f"  {old:10,.3f}{unit} {new:10,.3f}{unit}  {new / old - 1:+.2%}")
    console.print(
        f"{result['metric']}: new takes {found.ratio - 1:+.2%}, between {found.low - 1:+.2%} and {found.high - 1:+.2%} "
        f"with {found.confidence:.1%} confidence, of {found.pairs} pairs: "
        f"{'a difference' if found.differs else 'no difference found'}"
    )
    if result["limited"]:
        console.print(f"[bold red]the generator was the bottleneck in {result['limited']} of {2 * found.pairs} runs[/]")
    if result["decision"]:
        limit = f"slower by more than {result['limit']:.1%}"
        words = {"slower": limit, "not slower": f"not {limit}", "undecided": f"undecided whether {limit}: more --pairs"}
        console.print(f"[bold]{words[result['decision']]}[/]")
