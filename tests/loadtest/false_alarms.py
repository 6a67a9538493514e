"""How often `compare` finds a difference where there is none, and one of 10 % where there is one.

python tests/loadtest/false_alarms.py --times 20 --images artifacts/pictures
"""

import argparse
import tempfile
from pathlib import Path

from stubs import loadtest, stub

SERVICE_MS, SPREAD = 10.0, 0.1


def differs(old_ms: float, new_ms: float, number: int, images: Path) -> bool:
    """Whether one comparison of two servers, each with a service time that scatters by 10 %, finds a difference."""
    how = ("--duration", "300ms", "--warmup", "50ms", "--pairs", 10, "--users", 2, "--limit", 20, "--no-report")
    with (
        tempfile.TemporaryDirectory() as folder,
        stub("--service-ms", old_ms, "--spread", SPREAD, "--seed", 2 * number) as old,
        stub("--service-ms", new_ms, "--spread", SPREAD, "--seed", 2 * number + 1) as new,
    ):
        done = loadtest("compare", old.url, new.url, "--images", images, *how, output=Path(folder))
        found = done.result["estimate"]
    print(f"{old_ms:g} and {new_ms:g} ms: {found['low'] - 1:+.2%} to {found['high'] - 1:+.2%}", flush=True)
    return found["low"] > 1 or found["high"] < 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--images", type=Path, default=Path("artifacts/pictures"))
    arguments = parser.parse_args()
    for slower in (1.0, 1.1):
        found = [
            differs(SERVICE_MS, slower * SERVICE_MS, number, arguments.images) for number in range(arguments.times)
        ]
        print(f"{slower - 1:.0%} slower: a difference found in {sum(found)} of {len(found)} comparisons")


if __name__ == "__main__":
    main()
