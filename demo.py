"""The end of `make demo`: serve the built repository, classify a few pictures over gRPC and HTTP, and stop."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":  # until main() Ctrl-C simply ends the program: the import system may swallow an exception
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from alexnet_triton.serving.errors import ServingError
from alexnet_triton.serving.server import Server

ROOT = Path(__file__).resolve().parent


def pick(folder: Path, count: int) -> list[Path]:
    """One picture of each of the first `count` classes."""
    return [min(entry.iterdir()) for entry in sorted(folder.iterdir())[:count] if entry.is_dir()]


def classify(url: str, pictures: list[Path]) -> None:
    """Run the client as a user does."""
    command = [sys.executable, str(ROOT / "client" / "classify.py"), *map(str, pictures), "--url", url]
    print(f"\n$ python client/classify.py {' '.join(map(str, pictures))} --url {url}", flush=True)
    subprocess.run(command, check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("artifacts/model_repository"))
    parser.add_argument("--pictures", type=Path, default=Path("artifacts/pictures"), help="<class>/ folders")
    parser.add_argument("--count", type=int, default=3, help="pictures to classify (default 3)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Server(options.repository, http_port=0, grpc_port=0, metrics_port=0) as server:
            pictures = pick(options.pictures, options.count)
            for url in (f"grpc://{server.grpc_address}", f"http://{server.http_address}"):
                classify(url, pictures)
    except (ServingError, OSError) as error:
        print(f"demo, serving: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"demo, classifying: the client ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\nThe server is stopped. `make serve` starts it again, in the foreground.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
