#!/usr/bin/env python3
"""Classify images: `python client/classify.py IMAGE...`, from any folder. `--help` says the rest."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script this folder comes first among the places of modules: the project's root belongs there.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from client.cli import main

    sys.exit(main())
