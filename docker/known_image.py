"""Whether the Triton of this machine or container is well: a known image gets its known answer. For health checks.

    python docker/known_image.py

Exit status: 0 well; 1 not, or none runs.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from serving.runs import find_runs


def main() -> int:
    runs = find_runs()
    for run in runs:
        print(run.describe())
    if not runs:
        print("known_image: no server runs", file=sys.stderr)
    return 0 if runs and all(run.is_well() for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
