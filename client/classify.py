#!/usr/bin/env python3
"""Classify images: `python client/classify.py IMAGE...`, from any folder. `--help` says the rest."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder: its modules belong to `alexnet_triton.client`
    from alexnet_triton.client.cli import main

    sys.exit(main())
