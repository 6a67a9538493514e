"""The command `alexnet-triton claims`: the 2012 paper's claims, shown again on small networks.

It writes a picture a claim, all figures as claims.json, and a table of their lines into --readme.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import Progress

from alexnet_triton.common import files, provenance
from alexnet_triton.common.command import Parser, finish
from alexnet_triton.training.claims import activation, devices, variants
from alexnet_triton.training.claims.common import ClaimResult, Note, SmallDataset, shrink
from alexnet_triton.training.data import add_data_options, open_dataset
from alexnet_triton.training.device import keep_freed_memory
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.log import progress_bar

PROG = "alexnet-triton claims"
TRAIN_IMAGES, TEST_IMAGES = 10_000, 1_000
START, END = "<!-- claims -->", "<!-- end of claims -->"

Entry = dict[str, object]  # of claims.json: the fields of ClaimResult, and the machine
Show = Callable[[SmallDataset, Path, Note], ClaimResult]
CLAIMS: dict[str, Show] = {
    "activation": activation.show,
    "dropout": variants.show_dropout,
    "ideas": variants.show_ideas,
    "devices": devices.show,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Show the 2012 paper's claims again, on small networks.")
    add_data_options(parser)
    parser.add_argument("--only", choices=CLAIMS, nargs="+", help="of the claims; the others' entries stay")
    parser.add_argument("--to", type=Path, default=Path("artifacts/claims"), metavar="FOLDER")
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"put the table between {START} and {END}")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    keep_freed_memory()
    path = options.to / "claims.json"
    entries = _read_entries(path) if options.only else {}
    data = shrink(open_dataset(options.data, options.data_dir), TRAIN_IMAGES, TEST_IMAGES)
    with progress_bar() as progress:
        for name in [name for name in CLAIMS if not options.only or name in options.only]:
            result = _show(name, data, options.to, progress)
            print(f"{result.claim} ({result.seconds:.0f} s): {result.line}", flush=True)
            entries[name] = {**asdict(result), "machine": provenance.describe_run(("torch", "numpy", "pillow"))}
            entries = {key: entries[key] for key in CLAIMS if key in entries}
            files.write_text(path, json.dumps(entries, indent=1) + "\n")
            if options.readme:
                folder = os.path.relpath(options.to, options.readme.parent)
                put_into(options.readme, table(entries.values(), folder))


def _read_entries(path: Path) -> dict[str, Entry]:
    """The entries of an earlier run.

    Raises:
        TrainingError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not a report of claims ({error}); remove it") from error


def _show(name: str, data: SmallDataset, folder: Path, progress: Progress) -> ClaimResult:
    task = progress.add_task(name, total=None, note="")
    start = time.perf_counter()
    result = CLAIMS[name](data, folder, lambda note: progress.update(task, note=note))
    progress.update(task, total=1, completed=1, note="")
    return replace(result, seconds=round(time.perf_counter() - start, 1))


def table(entries: Iterable[Entry], folder: str) -> str:
    """The lines as a Markdown table with links to the pictures."""
    rows = [f"| [{entry['claim']}]({Path(folder, str(entry['picture']))}) | {entry['line']} |" for entry in entries]
    return "\n".join(["| claim | what came of it: mean (least to most) |", "| --- | --- |", *rows])


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
