"""Whether the Triton of this machine or container is well: a reference image gets its reference answer. For health checks.

    python docker/reference_image.py

Exit status: 0 well; 1 not, or none runs.
"""

import sys

from alexnet_triton.serving.runs import find_runs


def main() -> int:
    runs = find_runs()
    for run in runs:
        print(run.describe())
    if not runs:
        print("reference_image: no server runs", file=sys.stderr)
    return 0 if runs and all(run.is_healthy() for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
