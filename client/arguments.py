"""The command line: its options, its help, and the settings that they make."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from alexnet_triton.client.config import AUTO_BATCH, Config, Tls
from alexnet_triton.client.errors import UsageError
from alexnet_triton.common.command import Parser, fraction

PROGRAM = "alexnet-classify"

DESCRIPTION = """\
Classify images with AlexNet on a Triton server.

IMAGE is a file (JPEG, PNG, WebP, GIF, BMP); a folder, with --recursive; a glob in
quotes ('photos/**/*.jpg'); - for one image on standard input; @LIST for a file of
paths, one a line or as `find -print0` writes them (@- reads the list from standard
input); or an http or https address, with --allow-urls, fetched within --timeout
and without the headers. A file whose name begins with @ or - is given as ./@name,
./-name. `info` describes the server; a file of that name is ./info.

An image is turned as its EXIF says and converted to 8-bit RGB (CMYK, 16-bit and
palette images too). Its first frame is taken, transparency is laid on white, the
short side is scaled to 256 pixels and the centre is cropped. Files over 32 MiB and
pictures over 25 million pixels are refused before they are decoded.
"""

EPILOG = """\
exit codes
  0  all images were classified
  1  some image was not; each has a line on standard error, the others are printed
  2  wrong usage
  3  the server is not reachable, not ready, does not answer in time, or lacks the model
  130  interrupted

results
  json  one object a line, in the order given:
        {"path", "model", "version", "top": [{"label", "index", "probability"}], "ms"}
        or {"path", "error"}; ms is the time of the request that carried the image
  csv   path,model,version,ms,error,label_1,index_1,probability_1,...
  With --output each result is in FILE when the next is asked for. The same command
  with --resume continues a run that was cut off: every image is in FILE once.
  An error that ends in [transient] was a server's or the network's: --resume takes its
  line out of FILE and tries the image again. All other failed images count as done;
  remove their lines to try them again.
  FILE.settings remembers --model, --model-version, --top, --threshold and --labels.
  --resume with others is refused, as the results would not be alike.
  --save-annotated FOLDER writes each image, at most 720 pixels wide and high, with its
  classes under it, and index.html: thumbnails with classes and bars, by class or with
  the least sure first, failures at the end. It shows the first 10,000 images. With
  --resume it goes on with those that FOLDER/entries.jsonl holds.

when things go wrong
  A request that met a broken connection, a busy or a restarting server is sent again
  after a random pause of at most 0.1, 0.2, 0.4 ... 2 s, up to --retries times and
  within --timeout. All requests together repeat at most a tenth of what they sent
  (and a first few hundred), so that a server in trouble is not overloaded. When a
  server goes away in the middle of a run, the run waits for it until --timeout. When
  it says how long to wait (Retry-After), the run asks another that is free, or does so
  if that is within --timeout.
  Redirections are not followed, as they would get the headers and their keys. With
  several --url the first healthy one is used; a lost one is asked every second until
  it is back. A run ends with exit code 3 at the first image that no server answered.

environment
  GRPC_PORT  port of the default address
  NO_COLOR   no colour, no bars

examples
  alexnet-classify photo.jpg
  alexnet-classify --recursive photos --output photos.jsonl --concurrency 32 --resume
  find . -name '*.png' -print0 | alexnet-classify @- --format csv
  alexnet-classify cat.jpg --url grpc://one:8001,grpc://two:8001 --wait 60
  alexnet-classify info --url http://127.0.0.1:8000
  eval "$(alexnet-classify --completion bash)"
"""

INFO_DESCRIPTION = "Describe the server: its models, their versions, and the inputs and outputs of --model."

# The help of options that does not fit beside them.
URL_HELP = """\
grpc://, grpcs://, http:// or https://HOST:PORT; several, repeated or with commas, take over from one another
(default: grpc://127.0.0.1:8001, or the port GRPC_PORT)"""
HEADER_HELP = "sent with every request, or @FILE with one a line, which keeps a key out of the process list; repeatable"
ANNOTATED_HELP = "write each image there with its classes and bars, and index.html, a page of all of them"
BATCH_HELP = f"images a request (default: 1 until --concurrency requests are in flight, then {AUTO_BATCH})"
SEND_HELP = "files as they are, or pixels decoded here (default: what the model takes)"


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
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    parser.add_argument("--completion", choices=("bash", "zsh", "tcsh"), help="print a completion script for a shell")
    return parser


def build_info_parser() -> Parser:
    """The parser of `alexnet-classify info`."""
    parser = Parser(prog=f"{PROGRAM} info", description=INFO_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the description")
    add_server_options(parser)
    return parser


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a server and a model, and say how to reach them."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", action="append", default=[], help=URL_HELP)
    group.add_argument("--model", help="model to ask (default: classify, or alexnet with --send pixels)")
    group.add_argument("--model-version", default="", metavar="N", help="its version (default: the server's choice)")
    _add_number(group, "--timeout", Config.timeout_s, "SECONDS", "for one image, retries included")
    group.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="wait so long for a server to start")
    group.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help=HEADER_HELP)
    group.add_argument("--ca", metavar="PEM", help="authority that signed the server's certificate")
    group.add_argument("--cert", metavar="PEM", help="this client's certificate")
    group.add_argument("--key", metavar="PEM", help="this client's key")


def _add_number(group: argparse._ArgumentGroup, option: str, default: float, unit: str, text: str) -> None:
    """An option that takes a number of its default's type, and whose help says the default."""
    group.add_argument(option, type=type(default), default=default, metavar=unit, help=f"{text} (default: {default:g})")


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
    _add_number(group, "--top", Config.top, "N", "classes an image")
    group.add_argument("--threshold", type=fraction, default=0.0, metavar="P", help="leave out classes below P (0..1)")
    group.add_argument("--labels", metavar="FILE", help="names of the classes, one a line, in place of the server's")
    group.add_argument("--save-annotated", metavar="FOLDER", help=ANNOTATED_HELP)
    group.add_argument("--no-progress", action="store_true", help="no progress bar on a terminal")
    group.add_argument("--verbose", "-v", action="store_true", help="print where the time of each request went")


def _add_sending_options(parser: Parser) -> None:
    group = parser.add_argument_group("sending")
    group.add_argument("--batch", type=int, default=0, metavar="N", help=BATCH_HELP)
    _add_number(group, "--concurrency", Config.concurrency, "N", "requests in flight; bounds the memory")
    group.add_argument("--send", choices=("auto", "encoded", "pixels"), default="auto", help=SEND_HELP)
    _add_number(group, "--retries", Config.retries, "N", "repeats of a request that failed")
    group.add_argument("--hedge", type=float, metavar="SECONDS", help="ask twice when there is no answer by then")
    group.add_argument("--priority", type=int, default=0, metavar="N", help="Triton's; 1 is served first")


def build_config(arguments: argparse.Namespace) -> Config:
    """The classifier's settings. Options that the parser did not have keep their defaults.

    Raises:
        UsageError: a setting that cannot work.
    """
    sending = ("batch", "concurrency", "send", "retries", "priority", "top")
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
    """Each header, also those in files, as curl's --header takes them; before it what a message may show of it.

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


class _Version(argparse.Action):
    """Print the version and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata  # takes longer to import than the command's own modules

        try:
            version = metadata.version("alexnet-triton")
        except metadata.PackageNotFoundError:  # the script in a checkout that is not installed
            version = "not installed"
        print(f"{parser.prog} {version}")
        parser.exit()
