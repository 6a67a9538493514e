"""Classify images: `python client/classify.py IMAGE...`, from any folder. `--help` says the rest."""

import sys

#!/usr/bin/env python3


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules are `alexnet_triton.client`'s
    from alexnet_triton.client.cli import main

    sys.exit(main())
