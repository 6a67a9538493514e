"""The command `bulk`: inputs that are not in the output yet, through a pipeline of Ray Data, into the output.

alexnet-triton bulk photos --output artifacts/answers
"""

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alexnet_triton.bulk.inputs import BulkError, InputError
from alexnet_triton.bulk.output import ROWS_PER_FILE, BulkSettings, OutputFolder, open_output
from alexnet_triton.bulk.stages import (
    BLOCK_ROWS,
    Model,
    NetworkStage,
    TritonStage,
    find_model,
)
from alexnet_triton.client import Classifier
from alexnet_triton.common.command import Parser, UserError, finish, positive_int, printable
from alexnet_triton.common.files import write_json
from alexnet_triton.common.provenance import describe_hardware, describe_run, usable_cores

if TYPE_CHECKING:
    from ray.data import Dataset

PROG = "alexnet-triton bulk"
REPOSITORY = Path("artifacts/model_repository")
PACKAGES = ("ray", "pyarrow", "numpy", "openvino", "pillow", "cykooz-resizer")
NO_CLUSTER = 3  # exit code, as of a server that is not reached
CONNECT_TIMEOUT_S = 5.0
WAVE_ROWS = 1_000_000  # of one execution of Ray Data, which holds an entry of each of its blocks in memory
LOG = "_ray.log"  # in the output folder: what Ray says
STORE_BYTES = 512 * 2**20  # of Ray's object store on one machine, beside the model's file
# A node has one logical CPU a core, and there is an actor a core. It takes a quarter of a CPU, so that the actors of a
# lost node find a place on those that are left, and they are spread, so that each has a core while none is lost.
ACTOR_CPUS = 0.25
EXIT_CODES = (
    "exit codes: 0 every input has its row, those that cannot be decoded with an error; 1 the run stopped, and the "
    "same command continues it; 2 wrong input or options; 3 server or cluster not reached; 130 interrupted"
)


class ClusterError(BulkError):
    """No Ray cluster at the address."""

    exit_code = NO_CLUSTER


@dataclass(frozen=True)
class Report:
    """What a run did, and what the output holds.

    Attributes:
        images: of this run; `inputs` are those of the whole output.
        seconds: from the first block's submission to the last part's file.
        core_hours_per_million: cores of the cluster, for as long as a million images take at this rate.
    """

    inputs: int
    images: int
    seconds: float
    images_per_s: float
    cores: int
    core_hours_per_million: float
    model_version: str
    classes: dict[str, int]
    errors: dict[str, int]


def main(words: Sequence[str]) -> int:
    """Classify everything that the words name; returns the exit code of `EXIT_CODES`."""
    parser = Parser(
        prog=PROG, description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="INPUT", help="folder, glob or Parquet file; s3:// and gs:// too")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="Parquet files, continued if begun"
    )
    text = f"the served version of it classifies (default {REPOSITORY})"
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help=text)
    parser.add_argument(
        "--address", metavar="RAY", help="a Ray cluster, HOST:PORT or auto (default: one on this machine)"
    )
    parser.add_argument("--url", nargs="+", default=[], help="running Tritons classify instead of the repository")
    parser.add_argument(
        "--column", help="of Parquet input: paths, or bytes of image files (default: bytes, image or path)"
    )
    parser.add_argument("--top", type=positive_int, default=5, help="classes in `top` (default 5)")
    parser.add_argument(
        "--rows-per-file", type=positive_int, default=ROWS_PER_FILE, help=f"rows of a file (default {ROWS_PER_FILE})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the summary with hardware, versions and command")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    _require_ray()
    model = None if options.url else find_model(options.repository)
    version, name = _ask_version(options.url) if model is None else (model.version, f"{model.file.name} {model.digest}")
    remote = "://" in options.input or Path(options.input).is_absolute()
    settings = BulkSettings(
        input=options.input,
        folder="" if remote else str(Path.cwd()),
        column=options.column,
        model_version=version,
        model=name,
        top=options.top,
        rows_per_file=options.rows_per_file,
    )
    with open_output(options.output, settings) as output:
        report = _classify(output, options, model)
    _show(report)
    if options.json:
        write_json(options.json, {**describe_run(PACKAGES), **asdict(report)})


def _require_ray() -> None:
    try:
        import ray.data  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise InputError(f"needs {error.name or 'ray'}: pip install 'alexnet-triton[bulk]'") from error


def _ask_version(urls: Sequence[str]) -> tuple[str, str]:
    """The version that Triton answers with and the model's name.

    Raises:
        ServerError: no server answers.
    """
    with Classifier(*urls) as classifier:
        answer = classifier.classify(np.zeros((64, 64, 3), np.uint8))
    return answer.version, answer.model


def _classify(output: OutputFolder, options: argparse.Namespace, model: Model | None) -> Report:
    missing, cores, seconds = output.missing(), usable_cores(), 0.0
    images = output.count_rows(missing)
    if missing:
        with (
            _output_to(output.path / LOG) as stderr,
            _ray(options.address, model) as cores,
            _progress(output.inputs.num_rows, images, stderr) as advance,
        ):
            start = time.perf_counter()
            for wave in _waves(missing, max(1, WAVE_ROWS // output.settings.rows_per_file)):
                for answers in _answers(output, wave, options, model, cores):
                    output.add(answers)
                    advance(answers.num_rows)
            seconds = time.perf_counter() - start
        if left := output.missing():
            raise BulkError(f"{len(left)} parts are not written: the same command continues")
    counts = output.count()
    rate = images / seconds if seconds else 0.0
    hours = cores / rate * 1e6 / 3600 if rate else 0.0
    rounded = (round(seconds, 1), round(rate, 1), cores, round(hours, 2))
    return Report(
        output.inputs.num_rows, images, *rounded, output.settings.model_version, counts.classes, counts.errors
    )


def _waves(parts: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (parts[start : start + size] for start in range(0, len(parts), size))


# ---- Ray


@contextmanager
def _output_to(log: Path) -> Iterator[TextIO]:
    """Have what Ray writes to stdout and stderr in a file; the block gets this process's own stderr.

    Ray writes to both by itself, whatever its log level, of nodes that are lost and of much that is nothing to a user.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    own = {number: os.dup(number) for number in (1, 2)}
    try:
        with log.open("ab") as file, os.fdopen(os.dup(own[2]), "w") as stderr:
            for number in own:
                os.dup2(file.fileno(), number)
            yield stderr
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, copy in own.items():
            os.dup2(copy, number)
            os.close(copy)


@contextmanager
def _ray(address: str | None, model: Model | None) -> Iterator[int]:
    """A cluster for the block: the one at `address`, or one of this machine alone; its logical CPUs.

    Raises:
        ClusterError: there is none, or it has no CPU.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        if address:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            store = STORE_BYTES + (model.file.stat().st_size if model else 0)
            ray.init("local", num_cpus=usable_cores(), object_store_memory=store, _node_ip_address="127.0.0.1", **quiet)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise ClusterError(f"--address {address}: no Ray cluster: {_one_line(error)}") from error
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 0)))
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself tries for minutes, with tracebacks."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if address == "auto":
        return
    try:
        with socket.create_connection((place.hostname or "", place.port or 0), CONNECT_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--address {address}: no Ray cluster: {_one_line(error)}; start one: ray start --head"
        ) from error


def _answers(
    output: OutputFolder, parts: Sequence[int], options: argparse.Namespace, model: Model | None, cores: int
) -> Iterator[Any]:
    """Tables of `ANSWER_SCHEMA` for all rows of these parts, each of one part, in any order.

    Raises:
        BulkError: a stage failed for good.
        ServerError: no Triton answered.
    """
    from ray.exceptions import RayError

    try:
        pipeline = _pipeline(output, parts, options, model, cores)
        yield from pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (RayError, RuntimeError) as error:
        raise _explain(error) from error


def _pipeline(
    output: OutputFolder, parts: Sequence[int], options: argparse.Namespace, model: Model | None, cores: int
) -> "Dataset":
    import ray
    import ray.data

    _configure_ray_data()
    source = ray.data.from_arrow([block for part in parts for block in _blocks(output.rows(part))])
    words: dict[str, Any] = {"folder": output.settings.folder, "top": output.settings.top}
    if model is None:
        words |= {"urls": options.url, "version": output.settings.model_version}
    else:
        words |= {"model": model, "content": ray.put(model.file.read_bytes())}
    return source.map_batches(
        NetworkStage if model else TritonStage,
        fn_constructor_kwargs=words,
        compute=ray.data.ActorPoolStrategy(size=cores if model else max(1, cores // 4)),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=ACTOR_CPUS,
        scheduling_strategy="SPREAD",
    )


def _configure_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = None  # the stages cut their blocks themselves
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _blocks(rows: Any) -> Iterator[Any]:
    """The work of one task: rows of one Parquet file, which is streamed, or `BLOCK_ROWS` other rows."""
    if rows.column("file").null_count == rows.num_rows:
        yield from (rows.slice(start, BLOCK_ROWS) for start in range(0, rows.num_rows, BLOCK_ROWS))
    else:
        yield rows


def _explain(error: BaseException) -> UserError:
    """The error of a stage that this project raised, or Ray's own in one line."""
    cause: BaseException | None = error
    while cause is not None:
        for each in (cause, getattr(cause, "cause", None)):
            if isinstance(each, UserError):
                return each
        cause = cause.__cause__
    return BulkError(
        f"the cluster failed: {_one_line(error)}; {LOG} in the output has more, the same command continues"
    )


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# ---- what people see


@contextmanager
def _progress(inputs: int, images: int, stderr: TextIO) -> Iterator[Any]:
    """A function that takes how many more images are done; a bar with rate and remaining time on a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f} images/s"), TimeRemainingColumn())
    console = Console(file=stderr)
    with Progress(*columns, console=console, disable=not stderr.isatty(), transient=True) as bar:
        task = bar.add_task("", total=inputs, completed=inputs - images, rate=0.0)
        start, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(task, advance=count, rate=done / (time.perf_counter() - start))

        yield advance


MOST_CLASSES = 10  # in the summary; the file of --json has all


def _show(report: Report) -> None:
    done = "all were there" if not report.images else f"{report.images:,} now, in {report.seconds:,.1f} s"
    print(f"{report.inputs:,} images by version {report.model_version}; {done}; {describe_hardware()}")
    if report.images:
        print(
            f"{report.images_per_s:,.1f} images/s on {report.cores} cores, "
            f"{report.core_hours_per_million:,.2f} core-hours for a million"
        )
    for heading, counts in (("class", report.classes), ("error", report.errors)):
        for name, count in list(counts.items())[:MOST_CLASSES]:
            print(f"  {heading}  {count:>11,}  {printable(name)}")
        if len(counts) > MOST_CLASSES:
            print(
                f"  {heading}  {sum(list(counts.values())[MOST_CLASSES:]):>11,}  in {len(counts) - MOST_CLASSES} more"
            )
