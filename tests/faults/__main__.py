"""`make faults`: the thirty-three classes, one after another, as a table and JSON."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from alexnet_triton.common.command import FAILED as FAILED_CODE
from alexnet_triton.common.command import Parser, finish, printable
from alexnet_triton.common.files import write_json, write_text
from alexnet_triton.common.provenance import describe_command, describe_hardware, describe_run
from alexnet_triton.loadtest.bench.config import ROOT, BenchConfig, BenchError, prepare_images
from alexnet_triton.loadtest.bench.gateway import running_gateway
from tests.faults import breakage, callers, malformed, starts
from tests.faults.server import FaultSuiteError, ServedCopy
from tests.faults.suite import (
    FAILED,
    FULL,
    QUICK,
    Context,
    FaultClass,
    Row,
    Scale,
    learn_corpus,
    run_class,
)
from tests.faults.wire import Door

PROGRAM = "make faults"
CLASSES: dict[int, FaultClass] = {
    each.number: each
    for each in sorted(
        (each for room in (malformed, callers, breakage, starts) for each in room.CLASSES),
        key=lambda each: each.number,
    )
}
PACKAGES = ("nvidia-pytriton", "openvino", "tritonclient", "grpcio", "aiohttp", "numpy", "pillow")
ABOUT = """\
What callers and operators do wrong, done to the real server; `make faults` writes this page. In every class there is
no wrong answer and no request without an answer or an error; the reference image is answered rightly within 5 s of the
fault's end; there are as many processes and names in /dev/shm as before; and memory, without what files back, is within
5 % of what it was after the first repetition. What a class broke stands behind NOT."""
TABLE = Path("docs/faults.md")


def main(words: Sequence[str]) -> int:
    """Exit code 0: every class passed or could not be run here, 1: one failed or the suite cannot run, 2: usage."""
    options = _parse(words)
    return finish(PROGRAM, lambda: _run(options))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description="Do thirty-three classes of faults to the real server, and check it.")
    add = parser.add_argument
    add(
        "--repository", type=Path, default=Path("artifacts/model_repository"), metavar="FOLDER", help="served as a copy"
    )
    add("--images", type=Path, metavar="FOLDER", help="photographs to send (the demo's pictures, enlarged)")
    add("--pictures", type=Path, default=Path("artifacts/pictures"), metavar="FOLDER", help="the demo's (%(default)s)")
    text = "published in class 33 (%(default)s, else the served version's own)"
    add("--model", type=Path, default=Path("artifacts/onnx/model.onnx"), metavar="FILE", help=text)
    add("--folder", type=Path, default=Path("artifacts/faults"), help="working files and logs (%(default)s)")
    add("--quick", action="store_true", help="shorter loads: about four minutes")
    add("--only", type=_numbers, default=list(CLASSES), metavar="N,N", help="these classes, without a table in docs/")
    add("--table", type=Path, metavar="FILE", help=f"where the table is written ({TABLE} when all classes are run)")
    add("--json", type=Path, metavar="FILE", help="the same as JSON")
    return parser.parse_args(words)


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(word) if word.isdecimal() else 0 for word in text.split(",")})
    if not set(numbers) <= CLASSES.keys():
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 1 to {max(CLASSES)} with commas between them")
    return numbers


def _run(options: argparse.Namespace) -> int:
    options.folder.mkdir(parents=True, exist_ok=True)
    config = BenchConfig(options.repository, options.folder, options.images, options.pictures)
    try:
        sent = prepare_images(config)
    except BenchError as error:
        raise FaultSuiteError(str(error)) from error
    scale = QUICK if options.quick else FULL
    with served(options.repository, options.folder, config.load_images(), scale) as context:
        context.model, context.pictures = options.model if options.model.is_file() else None, options.pictures
        rows = run_suite(context, [CLASSES[number] for number in options.only])
    table = options.table or (TABLE if options.only == list(CLASSES) else None)
    if table:
        write_text(table, build_table(rows, sent))
    if options.json:
        write_json(options.json, {**_provenance(), "images": sent, "rows": [asdict(row) for row in rows]})
    return FAILED_CODE if any(row.verdict == FAILED for row in rows) else 0


@contextmanager
def served(repository: Path, folder: Path, images: Sequence[bytes], scale: Scale) -> Iterator[Context]:
    """A server on a copy of a repository, the gateway before it where nginx is installed, and the images' answers.

    Raises:
        FaultSuiteError: there is no repository, or the server does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = ServedCopy(repository, folder)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        fresh = server.footprint()
        doors = [Door("directly", server.http, server.grpc)]
        rival = None
        try:
            behind, rival = stack.enter_context(_gateway(server, folder))
            doors.append(behind)
        except (BenchError, OSError, subprocess.CalledProcessError) as error:
            print(f"no gateway: {printable(str(error).strip())}", flush=True)
        yield Context(server, learn_corpus(server, images[: scale.images]), doors, scale, fresh, rival)


@contextmanager
def _gateway(server: ServedCopy, folder: Path) -> Iterator[tuple[Door, Door]]:
    """The gateway with the limits that it has by default, by two callers' keys."""
    secrets = folder.absolute() / "gateway"
    environment = {**os.environ, "GATEWAY_SECRETS": str(secrets), "GATEWAY_ENV": str(secrets / "env")}
    subprocess.run([ROOT / "docker/prepare.sh"], env=environment, capture_output=True, check=True)
    environment["GATEWAY_KEYS"] = str(secrets / "keys")
    subprocess.run([ROOT / "docker/key.sh", "rival"], env=environment, capture_output=True, check=True)
    with running_gateway(server.http, server.grpc, folder.absolute(), limits={}) as gateway:
        address = f"localhost:{gateway.port}"
        doors = [
            Door("through the gateway", address, address, {"Authorization": key}, gateway.certificate)
            for key in gateway.keys
        ]
        yield doors[0], doors[-1]


def run_suite(context: Context, chosen: Sequence[FaultClass]) -> list[Row]:
    """Run classes in order, with a line for each on standard output."""
    rows, started = [], time.monotonic()
    for fault in chosen:
        row = run_class(context, fault)
        rows.append(row)
        text = f"{row.number:2}  {row.name}: {row.verdict}  ({row.seconds:.1f} s)"
        print(f"{text}  {printable(row.seen)}" if row.verdict == FAILED else text, flush=True)
    failed = [str(row.number) for row in rows if row.verdict == FAILED]
    verdict = f"classes {', '.join(failed)} FAILED" if failed else "none failed"
    print(f"{len(rows)} classes in {time.monotonic() - started:.0f} s: {verdict}", flush=True)
    return rows


def build_table(rows: Sequence[Row], sent: str) -> str:
    """The page with the table, as Markdown."""
    about = _provenance()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())  # type: ignore[attr-defined]
    lines = [
        "# Faults",
        "",
        ABOUT,
        "",
        f"{about['date']}, commit {about['commit']}, on {describe_hardware()}. {versions}. Images: {sent}.",
        f"Command: {about['command']}",
        "",
        "| | class | what was done | how often | what was seen | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seen = row.seen.replace(f"{ROOT}/", "")
        cells = (str(row.number), row.name, row.done, f"{row.times:,}", seen, row.verdict)
        lines.append(f"| {' | '.join(printable(cell).replace('|', '/').replace('`', '') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _provenance() -> dict[str, object]:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    date = datetime.now(timezone.utc).date().isoformat()
    command = describe_command(["python", "-m", "tests.faults", *sys.argv[1:]])
    return {"date": date, "commit": commit, **describe_run(PACKAGES), "command": command}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
