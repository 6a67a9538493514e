"""Classify what the command line names and write the results."""

import argparse
import sys

from client.aio import AsyncClassifier
from client.arguments import PROGRAM
from client.config import Config
from client.formats import formatter, header
from client.names import printable
from client.results import Failure


async def run(arguments: argparse.Namespace, config: Config) -> int:
    """Classify all images; returns how many failed.

    Raises:
        ServerError: no server answered.
    """
    write = formatter(arguments.format, config.top, sys.stdout.isatty())
    sys.stdout.write(header(arguments.format, config.top))
    failed = 0
    async with AsyncClassifier.from_config(config) as classifier:
        async for result in classifier.classify_many(arguments.images):
            sys.stdout.write(write(result))
            sys.stdout.flush()
            if isinstance(result, Failure):
                failed += 1
                print(f"{PROGRAM}: {printable(result.path or '')}: {printable(str(result.error))}", file=sys.stderr)
    return failed
