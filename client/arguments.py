"""The command line."""

import argparse
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from client.config import AUTO_BATCH, Config, Tls
from client.errors import UsageError
from client.manual import DESCRIPTION, EPILOG, INFO_DESCRIPTION

PROGRAM = "alexnet-classify"


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{PROGRAM}: {message}; see {PROGRAM} --help\n")


def build_parser() -> Parser:
    """The parser of `alexnet-classify IMAGE...`."""
    parser = Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{PROGRAM} [OPTION]... IMAGE...\n       {PROGRAM} info [OPTION]...",
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder, glob, address, @LIST or -")
    _add_input_options(parser)
    _add_output_options(parser)
    add_server_options(parser)
    _add_sending_options(parser)
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--completion", choices=("bash", "zsh", "tcsh"), help="print a completion script for a shell")
    return parser


def build_info_parser() -> Parser:
    """The parser of `alexnet-classify info`."""
    parser = Parser(prog=f"{PROGRAM} info", description=INFO_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the description")
    add_server_options(parser)
    return parser


def add_server_options(parser: Parser) -> None:
    """What says whom to ask."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        action="append",
        default=[],
        help="grpc://, grpcs://, http:// or https://HOST:PORT; several, repeated or with commas, "
        "take over from one another (default: grpc://127.0.0.1:8001, or GRPC_PORT's)",
    )
    group.add_argument("--model", help="model to ask (default: classify, or alexnet with --send pixels)")
    group.add_argument("--model-version", default="", metavar="N", help="its version (default: the server's choice)")
    group.add_argument(
        "--timeout",
        type=float,
        default=Config.timeout_s,
        metavar="SECONDS",
        help="for one image, retries included (default: %(default)g)",
    )
    group.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="wait so long for a server to start")
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="sent with every request, or @FILE with one a line, which keeps a key out of the process list; repeatable",
    )
    group.add_argument("--ca", metavar="PEM", help="authority that signed the server's certificate")
    group.add_argument("--cert", metavar="PEM", help="this client's certificate")
    group.add_argument("--key", metavar="PEM", help="this client's key")


def _add_input_options(parser: Parser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument("--recursive", "-r", action="store_true", help="take the images in folders, and in theirs")
    group.add_argument("--allow-urls", action="store_true", help="fetch http:// and https:// images")


def _add_output_options(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", choices=("text", "json", "csv"), help="of the results (default: by FILE's suffix, else text)"
    )
    group.add_argument("--output", "-o", metavar="FILE", help="write results there as they come")
    group.add_argument("--resume", action="store_true", help="add to FILE, leaving out the images it holds")
    group.add_argument(
        "--top", type=int, default=Config.top, metavar="N", help="classes an image (default: %(default)s)"
    )
    group.add_argument(
        "--threshold", type=float, default=0.0, metavar="P", help="leave out classes less probable than P (0..1)"
    )
    group.add_argument("--labels", metavar="FILE", help="names of the classes, one a line, in place of the server's")
    group.add_argument("--no-progress", action="store_true", help="no progress bar on a terminal")
    group.add_argument("--verbose", "-v", action="store_true", help="say where the time of each request went")


def _add_sending_options(parser: Parser) -> None:
    group = parser.add_argument_group("sending")
    group.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help=f"images a request (default: 1 until --concurrency requests are in flight, then {AUTO_BATCH})",
    )
    group.add_argument(
        "--concurrency",
        type=int,
        default=Config.concurrency,
        metavar="N",
        help="requests in flight; bounds the memory (default: %(default)s)",
    )
    group.add_argument(
        "--send",
        choices=("auto", "encoded", "pixels"),
        default="auto",
        help="files as they are, or pixels decoded here (default: what the model takes)",
    )
    group.add_argument("--shm", action="store_true", help="hand images over in shared memory, on the same machine")
    group.add_argument("--compress", choices=("gzip", "deflate"), help="compress requests")
    group.add_argument(
        "--retries",
        type=int,
        default=Config.retries,
        metavar="N",
        help="repeats of a request that failed (default: %(default)s)",
    )
    group.add_argument("--hedge", type=float, metavar="SECONDS", help="ask twice when there is no answer by then")
    group.add_argument("--priority", type=int, default=0, metavar="N", help="Triton's; 1 is served first")


def build_config(arguments: argparse.Namespace) -> Config:
    """The classifier's settings.

    Raises:
        UsageError: one that cannot work.
    """
    sending = ("batch", "concurrency", "send", "shm", "compress", "retries", "priority", "top")
    return Config(
        urls=tuple(url for urls in arguments.url for url in urls.split(",")),
        model=arguments.model,
        version=arguments.model_version,
        timeout_s=arguments.timeout,
        hedge_s=getattr(arguments, "hedge", None),
        headers=dict(_header(*each) for each in _header_lines(arguments.header)),
        tls=Tls(arguments.ca, arguments.cert, arguments.key),
        **{name: getattr(arguments, name) for name in sending if hasattr(arguments, name)},
    )


def _header_lines(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each header, those of files among them, as curl's --header takes them; before it what a message may show of it.

    Raises:
        UsageError: a file cannot be read.
    """
    for text in given:
        if not text.startswith("@"):
            yield repr(text), text
            continue
        try:
            lines = Path(text[1:]).read_text("ascii").splitlines()
        except (OSError, UnicodeError) as error:
            raise UsageError(f"--header {text}: {getattr(error, 'strerror', None) or 'not ASCII'}") from error
        yield from ((f"{text}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())


def _header(shown: str, text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isprintable() or not text.isascii():
        raise UsageError(f"--header {shown}: give it as 'Name: value'")
    return name.strip(), value.strip()


def _version() -> str:
    try:
        return f"%(prog)s {metadata.version('alexnet-triton')}"
    except metadata.PackageNotFoundError:  # the plain script, of a checkout that is not installed
        return "%(prog)s, not installed"
