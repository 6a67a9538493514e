"""The command `alexnet-triton claims`: the 2012 paper's claims, shown again on small networks.

What is run and what counts as shown stands in conditions.json before it is run. Each claim has a picture and a file of
all its figures; --readme has a table of their lines. A result that was made under other conditions is refused. Results
in the folder before/ were found before the conditions were fixed; they stay in the table and say so.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from alexnet_triton.common import files, provenance
from alexnet_triton.common.command import Parser, finish
from alexnet_triton.training.claims import ClaimResult, SmallDataset, activation, devices, shrink, variants
from alexnet_triton.training.data import add_data_options, open_dataset
from alexnet_triton.training.device import keep_freed_memory
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.log import progress_bar

PROG = "alexnet-triton claims"
CONDITIONS = Path(__file__).with_name("conditions.json")
BEFORE = "before"  # the folder of results that were found before the conditions were fixed
START, END = "<!-- claims -->", "<!-- end of claims -->"

Values = dict[str, Any]  # of conditions.json, or of a result's file


@dataclass(frozen=True)
class Claim:
    """What shows a claim: from a data set, its conditions, the path of a picture and a function told what runs now."""

    show: Callable[..., ClaimResult]
    conditions: type


CLAIMS = {
    "activation": Claim(activation.show, activation.ActivationConditions),
    "dropout": Claim(variants.show_dropout, variants.VariantConditions),
    "dropout-augmented": Claim(variants.show_dropout, variants.VariantConditions),
    "ideas": Claim(variants.show_ideas, variants.VariantConditions),
    "devices": Claim(devices.show, devices.DeviceConditions),
}


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Show the 2012 paper's claims again, on small networks.")
    add_data_options(parser)
    parser.add_argument("--only", choices=CLAIMS, nargs="+", help="of the claims; the others' results stay")
    parser.add_argument("--to", type=Path, default=Path("artifacts/claims"), metavar="FOLDER")
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"put the table between {START} and {END}")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    keep_freed_memory()
    conditions = json.loads(CONDITIONS.read_text(encoding="utf-8"))
    chosen = [name for name in CLAIMS if not options.only or name in options.only]
    results = read_results(options.to, [name for name in CLAIMS if name not in chosen], conditions)
    sizes = conditions["data"]
    data = shrink(open_dataset(options.data, options.data_dir), sizes["training_images"], sizes["test_images"])
    with progress_bar() as progress:
        for name in chosen:
            results[name] = _show(name, data, conditions, options.to, progress)
            files.write_json(options.to / f"{name}.json", results[name])
            if options.readme:
                ordered = {key: results[key] for key in CLAIMS if key in results}
                put_into(options.readme, table(ordered, options.to, options.readme.parent))


def conditions_of(name: str, conditions: Mapping[str, Values]) -> Values:
    """What a claim's result depends on: its own conditions, and the sizes of the data."""
    return {"data": conditions["data"], **conditions[name]}


def read_results(folder: Path, names: Sequence[str], conditions: Mapping[str, Values]) -> dict[str, Values]:
    """The results of earlier runs, as far as there are any.

    Raises:
        TrainingError: a file holds something else, or its result was made under other conditions.
    """
    results = {name: _read(folder / f"{name}.json") for name in names if (folder / f"{name}.json").exists()}
    for name, result in results.items():
        theirs, ours = result.get("conditions", {}), conditions_of(name, conditions)
        for key in sorted(theirs.keys() | ours.keys()):
            if theirs.get(key) != ours.get(key):
                raise TrainingError(
                    f"{folder / name}.json: made under other conditions ({key}: {theirs.get(key)}, not "
                    f"{ours.get(key)}); run it again with --only {name}, or move it to {folder / BEFORE}"
                )
    return results


def _read(path: Path) -> Values:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not a report of claims ({error}); remove it") from error


def _show(name: str, data: SmallDataset, conditions: Mapping[str, Values], folder: Path, progress: Progress) -> Values:
    task = progress.add_task(name, total=None, note="")
    start, claim = time.perf_counter(), CLAIMS[name]
    fixed = claim.conditions(**conditions[name])
    result = claim.show(data, fixed, folder / f"{name}.png", lambda note: progress.update(task, note=note))
    progress.update(task, total=1, completed=1, note="")
    seconds = round(time.perf_counter() - start, 1)
    print(f"{result.claim} ({seconds:.0f} s): {verdicts_line(result.verdicts)}. {result.line}", flush=True)
    machine = provenance.describe_run(("torch", "numpy", "pillow"))
    return {**asdict(result), "seconds": seconds, "conditions": conditions_of(name, conditions), "machine": machine}


def verdicts_line(verdicts: Mapping[str, str]) -> str:
    """`dropout: shown; normalisation: not shown`."""
    return "; ".join(f"{statement}: {verdict}" for statement, verdict in verdicts.items())


def table(results: Mapping[str, Values], folder: Path, beside: Path) -> str:
    """A Markdown table with links to the pictures from a file in `beside`; the results of BEFORE are its last rows."""
    before = {path.stem: _read(path) for path in sorted((folder / BEFORE).glob("*.json"))}
    rows = [_row(result, folder / f"{name}.png", beside) for name, result in results.items()]
    rows += [_row(result, folder / BEFORE / f"{name}.png", beside) for name, result in before.items()]
    head = ["| claim | verdict | what came of it: mean (least to most) |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _row(result: Values, picture: Path, beside: Path) -> str:
    verdict = verdicts_line(result["verdicts"]) if "verdicts" in result else "found before the conditions were fixed"
    links = [os.path.relpath(path, beside) for path in (picture, picture.with_suffix(".json"))]
    return f"| [{result['claim']}]({links[0]}), [figures]({links[1]}) | {verdict} | {result['line']} |"


def put_into(readme: Path, text: str) -> None:
    """Replace what is between the marks.

    Raises:
        TrainingError: the marks are missing.
    """
    content = readme.read_text(encoding="utf-8")
    before, start, rest = content.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise TrainingError(f"{readme}: no {START} and {END} in it; put them where the table belongs")
    files.write_text(readme, f"{before}{START}\n{text}\n{END}{after}")
