"""The 2012 paper's claims, shown again: python -m alexnet_triton.training.claims --data cifar10 --to docs/claims.

Writes a picture a claim, all figures as claims.json, and their lines between the marks of --readme; with --only, those
of the other claims stay as they are.
Exit codes: 0 shown; 1 bad data or disk; 2 wrong command line.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.progress import Progress, TaskID

from alexnet_triton.common import files, provenance
from alexnet_triton.training.claims import activation, devices, variants
from alexnet_triton.training.claims.common import Advance, Figures, Images, hold
from alexnet_triton.training.data import open_dataset
from alexnet_triton.training.device import keep_freed_memory
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.log import progress_bar

TRAIN_IMAGES, TEST_IMAGES = 10_000, 1_000
START, END = "<!-- claims -->", "<!-- end of claims -->"

Entry = dict[str, object]  # of claims.json: the fields of Figures, and the machine
Show = Callable[[Images, Path, Advance], Figures]


def claims(quick: bool) -> dict[str, Show]:
    """Each claim by its name; `quick` runs the smallest of all, to see that it works."""
    sizes = activation.Size(), variants.DROPOUT, variants.IDEAS, devices.Size()
    if quick:
        sizes = (
            activation.Size(images=512, epochs=1, seeds=1),
            replace(variants.DROPOUT, images=48, epochs=1, seeds=1, width=0.05),
            replace(variants.IDEAS, images=48, epochs=1, seeds=1, width=0.05),
            devices.Size(images=128, epochs=2, rounds=1, batch=32, width=0.05),
        )
    figure1, dropout, ideas, two = sizes
    return {
        "activation": lambda images, folder, advance: activation.show(images, figure1, folder, advance),
        "dropout": lambda images, folder, advance: variants.show_dropout(images, dropout, folder, advance),
        "ideas": lambda images, folder, advance: variants.show_ideas(images, ideas, folder, advance),
        "devices": lambda images, folder, advance: devices.show(images, two, folder, advance),
    }


def table(entries: Iterable[Entry], folder: str) -> str:
    """The lines as a Markdown table with links to the pictures."""
    rows = [f"| [{entry['claim']}]({folder}/{entry['picture']}) | {entry['line']} |" for entry in entries]
    return "\n".join(["| claim | what came of it: mean (least to most) |", "| --- | --- |", *rows])


def put_into(readme: Path, text: str) -> None:
    """Replace what stands between the marks.

    Raises:
        TrainingError: the marks are not there.
    """
    content = readme.read_text(encoding="utf-8")
    before, start, rest = content.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise TrainingError(f"{readme}: no {START} and {END} in it; put them where the table belongs")
    files.write_text(readme, f"{before}{START}\n{text}\n{END}{after}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_triton.training.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist, cifar10, or a folder of photographs")
    parser.add_argument("--data-dir", type=Path, help="folder that holds the archives of fashion-mnist or cifar10")
    parser.add_argument("--only", choices=claims(False), nargs="+", help="of the claims, instead of all")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean nothing")
    parser.add_argument("--to", type=Path, default=Path("artifacts/claims"), metavar="FOLDER")
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"put the table between {START} and {END}")
    return parser.parse_args(arguments)


def show(options: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Each claim that is asked for, as soon as it is shown."""
    dataset = open_dataset(options.data, options.data_dir)
    images = hold(dataset, *((512, 64) if options.quick else (TRAIN_IMAGES, TEST_IMAGES)))
    with progress_bar() as progress:
        for name, one in claims(options.quick).items():
            if options.only and name not in options.only:
                continue
            task = progress.add_task(name, total=None, note="")
            start = time.perf_counter()
            figures = one(images, options.to, partial(_note, progress, task))
            yield name, replace(figures, seconds=round(time.perf_counter() - start, 1))
            progress.update(task, total=1, completed=1, note="")


def read_entries(path: Path) -> dict[str, Entry]:
    """What an earlier run has written.

    Raises:
        TrainingError: it is something else.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not a report of claims ({error}); remove it") from error


def _note(progress: Progress, task: TaskID, note: str) -> None:
    progress.update(task, note=note)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    keep_freed_memory()
    path = options.to / "claims.json"
    try:
        entries = read_entries(path) if options.only else {}
        for name, figures in show(options):
            print(f"{figures.claim} ({figures.seconds:.0f} s): {figures.line}", flush=True)
            entries[name] = {**asdict(figures), "machine": provenance.describe_run(("torch", "numpy", "pillow"))}
            entries = {key: entries[key] for key in claims(False) if key in entries}
            files.write_text(path, json.dumps(entries, indent=1) + "\n")
            if options.readme:
                put_into(options.readme, table(entries.values(), options.to.as_posix()))
    except (TrainingError, OSError) as error:
        print(f"claims: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
