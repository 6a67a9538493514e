"""python -m loadtest report RESULT [RESULT]: the page of a saved result, or of two runs side by side."""

import argparse
from pathlib import Path
from typing import Any

from loadtest.arguments import Parser
from loadtest.errors import SettingError
from loadtest.results import prepare_folder, read_result


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser: Parser = commands.add_parser("report", help="the page of a saved result, or of two runs side by side")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="folder of --output, or result.json")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the page (default: the first result's)")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from loadtest.report import write_report  # matplotlib takes a second to import

    if len(arguments.results) > 2:
        raise SettingError("one result or two: an old one and a new one")
    results = [read_result(path) for path in arguments.results]
    first = arguments.results[0]
    folder = prepare_folder(arguments.output or (first if first.is_dir() else first.parent))
    print(write_report(folder, results))
    return 0
