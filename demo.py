"""The end of `make demo` and `make imagenet`: serve a built repository, classify a few pictures, and stop."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet_triton.common.command import Parser, UserError, finish, leave_on_interrupt, positive_int

REPOSITORY = Path("artifacts/model_repository")


def main(words: Sequence[str]) -> int:
    leave_on_interrupt()
    parser = Parser(prog="demo", description=__doc__)
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument(
        "--pictures", type=Path, default=Path("artifacts/pictures"), help="pictures, or <class>/ folders"
    )
    parser.add_argument("--count", type=positive_int, default=3, help="pictures to classify (default 3)")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return finish("demo", lambda: _demo(options))


def _demo(options: argparse.Namespace) -> None:
    from alexnet_triton.serving.server import Server  # gRPC takes a while to load

    pictures = pick(options.pictures, options.count)
    with Server(options.repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        for url in (f"grpc://{server.grpc_address}", f"http://{server.http_address}"):
            classify(url, pictures)
    given = "" if options.repository == REPOSITORY else f" REPOSITORY={options.repository}"
    print(f"\nThe server is stopped. `make serve{given}` starts it again, in the foreground.")


def pick(folder: Path, count: int) -> list[Path]:
    """The first `count` pictures, or one of each of the first `count` classes."""
    return [min(entry.iterdir()) if entry.is_dir() else entry for entry in sorted(folder.iterdir())[:count]]


def classify(url: str, pictures: list[Path]) -> None:
    """Run the client as a user does."""
    client = Path(__file__).resolve().parent / "client" / "classify.py"
    command = [sys.executable, str(client), *map(str, pictures), "--url", url]
    print(f"\n$ python client/classify.py {' '.join(map(str, pictures))} --url {url}", flush=True)
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(f"the client ended with exit code {error.returncode}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
