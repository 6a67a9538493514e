"""python -m loadtest."""

import sys

from alexnet_triton.loadtest.cli import main

if __name__ == "__main__":
    sys.exit(main())
