"""The command line."""

import argparse
from importlib import metadata
from typing import NoReturn

from client.config import Config

PROGRAM = "alexnet-classify"


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{PROGRAM}: {message}; see {PROGRAM} --help\n")


def build_parser() -> Parser:
    """The parser of `alexnet-classify IMAGE...`."""
    parser = Parser(prog=PROGRAM, description="Classify images with AlexNet on a Triton server.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text", help="of the results")
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('alexnet-triton')}")
    add_server_options(parser)
    return parser


def add_server_options(parser: Parser) -> None:
    """What says whom to ask, and for what."""
    parser.add_argument("--url", action="append", default=[], help="the server; more than one for failover")
    parser.add_argument("--model", help="model to ask (default: classify)")
    parser.add_argument("--model-version", default="", help="its version (default: the server's latest)")
    parser.add_argument("--top", type=int, default=Config.top, help="classes an image (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=Config.timeout_s, help="seconds for an image")


def build_config(arguments: argparse.Namespace) -> Config:
    """The classifier's settings.

    Raises:
        UsageError: one that cannot work.
    """
    return Config(
        urls=tuple(arguments.url),
        model=arguments.model,
        version=arguments.model_version,
        top=arguments.top,
        timeout_s=arguments.timeout,
    )
