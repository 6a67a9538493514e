"""Saved results: one folder a result, with `result.json` in it, and the report beside it."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.errors import ResultError, SettingError

OK, MISSED, UNDECIDED, INTERRUPTED = 0, 1, 4, 130  # exit codes
CODES = {True: OK, False: MISSED, None: UNDECIDED}  # of a verdict
FORMAT = 1
NAME = "result.json"
KINDS = ("run", "sweep", "compare", "mlperf")
Json = dict[str, Any]


def describe_target(target: Target, arguments: argparse.Namespace) -> Json:
    """What was asked."""
    return {
        "url": str(target.address),
        "model": target.model,
        "version": target.version,
        "steps": target.steps,
        "sends": target.signature.kind,
        "batch": arguments.batch,
        "priorities": arguments.priorities,
        "images": str(arguments.images),
        "seed": arguments.seed,
    }


def prepare_folder(folder: Path) -> Path:
    """Make a folder for results, before anything is measured.

    Raises:
        SettingError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingError(f"--output {folder}: {reason}; name another folder") from None
    return folder


def read_result(path: Path) -> Json:
    """A result, from its folder or its file.

    Raises:
        ResultError: it is missing, or not a result of this program.
    """
    file = path / NAME if path.is_dir() else path
    try:
        result = json.loads(file.read_text())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ResultError(f"no result in {file}: {reason}; name a folder of --output") from None
    except ValueError:
        raise ResultError(f"{file} is no JSON: measure it again") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT or result.get("kind") not in KINDS:
        raise ResultError(f"{file} is no result of this version: measure it again")
    return result
