"""Classes 23, 24 and 27: starts that cannot succeed, each refused in one line, and TLS that cannot be believed."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from alexnet_triton.common.command import FAILED
from alexnet_triton.loadtest.bench.config import ROOT
from alexnet_triton.serving.repository import Repository, served_version
from tests.faults.server import HOST, ServedCopy, link_tree
from tests.faults.suite import GIVE_UP_S, Context, FaultClass, Seen
from tests.faults.wire import RIGHT, Door, Tally, ask

AT_ONCE = 3  # starts
UNREACHABLE = 3  # exit code of `classify`
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
TRIED_AGAIN = "start aborted"  # an event, not the reason: Triton's Python backend now and then aborts on a busy machine
Damage = Callable[[Path, str], object]


def one_line(done: CompletedProcess[str], name: str, code: int = FAILED) -> list[str]:
    """What is wrong with a refusal: another exit code, a traceback, or not one line on stderr."""
    lines = [line for line in done.stderr.splitlines() if TRIED_AGAIN not in line]
    problems = []
    if done.returncode != code:
        problems.append(f"{name}: exit code {done.returncode}, not {code}")
    if "Traceback" in done.stderr:
        problems.append(f"{name}: a traceback")
    elif len(lines) != 1:
        problems.append(f"{name}: {len(lines)} lines on stderr, not one")
    return problems


def _refused(context: Context, starts: Mapping[str, Callable[[], CompletedProcess[str]]], code: int = FAILED) -> Seen:
    """Run commands that have to fail, some at once; each has to say why in one line."""

    def run(name: str) -> tuple[list[str], str]:
        try:
            done = starts[name]()
        except TimeoutExpired:
            return [f"{name}: not refused"], ""
        told = done.stderr.replace(f"{context.server.folder}/", "")  # the machine's own paths
        reason = told.strip().splitlines()[-1:] or [""]
        return one_line(done, name, code), reason[0].partition(": ")[2][:120]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip(starts, pool.map(run, starts), strict=True))
    problems = [problem for each, _ in results.values() for problem in each]
    return Seen(len(starts), "; ".join(f"{name}: {reason}" for name, (_, reason) in results.items()), problems)


def _serve(server: ServedCopy, repository: Path, *words: object, **environment: str) -> CompletedProcess[str]:
    log = ("--log", server.folder / "starts" / f"{repository.name}.log")
    return server.run_command("serve", "--repository", repository, *FREE_PORTS, *log, *words, **environment)


# ---- 23


def _overwrite(path: Path, content: bytes) -> None:
    """The bytes of a copy may be those of the original: the name is taken away first."""
    path.unlink()
    path.write_bytes(content)


def _models(copy: Path, version: str) -> list[Path]:
    """The network in every precision: which is served depends on the processor."""
    return list((copy / "alexnet" / version).glob("model*.onnx"))


def _change_models(copy: Path, version: str, change: Callable[[bytes], bytes]) -> None:
    for path in _models(copy, version):
        _overwrite(path, change(path.read_bytes())[:-9])


DAMAGES: dict[str, Damage] = {
    "half a model": lambda copy, version: _change_models(copy, version, lambda content: content[:100_000]),
    "a configuration that is none": lambda copy, version: _overwrite(
        Repository.open(copy, "cpu").config_file("alexnet"), b"{ nothing"
    ),
    "a manifest that is none": lambda copy, version: _overwrite(copy / "alexnet" / version / "manifest.json", b"{"),
    "no reference answer": lambda copy, version: _overwrite(copy / "classify" / version / "reference.json", b"[]"),
    "a model of zeros": lambda copy, version: _change_models(copy, version, lambda _: bytes(1000)),
    "no model": lambda copy, version: [path.unlink() for path in _models(copy, version)],
    "a configuration of zeros": lambda copy, version: _overwrite(copy / "classify/config.pbtxt", bytes(500)),
    "an empty reference image": lambda copy, version: _overwrite(copy / "classify" / version / "reference.0.jpg", b""),
}


def corrupt_files(context: Context) -> Seen:
    """Starts on copies of the repository, each with one file damaged."""
    server = context.server
    version = str(served_version(server.repository))

    def start(name: str) -> CompletedProcess[str]:
        copy = server.folder / "starts" / name.replace(" ", "-")
        link_tree(server.repository, copy)
        DAMAGES[name](copy, version)
        return _serve(server, copy)

    return _refused(context, {name: partial(start, name) for name in list(DAMAGES)[: context.scale.corrupt]})


# ---- 24


def no_room(context: Context) -> Seen:
    """A port that is taken, folders that cannot be written, a disk without room for logs and for a publication."""
    server, folder = context.server, context.server.folder / "starts"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("not a folder")
    open_to_all = folder / "open"
    (open_to_all / f"alexnet-triton-{os.getuid()}").mkdir(parents=True, exist_ok=True)
    (open_to_all / f"alexnet-triton-{os.getuid()}").chmod(0o755)
    repository = server.repository
    seen = _refused(
        context,
        {
            "a taken port": lambda: _serve(server, repository, "--http-port", server.http_port),
            "a log below a file": lambda: _serve(server, repository, "--log", folder / "file" / "log"),
            "a run folder open to others": lambda: _serve(server, repository, TMPDIR=str(open_to_all)),
        },
    )
    try:
        with _full_disk(folder / "full") as full:
            texts = [
                _publish_without_room(context, full, seen.problems),
                _serve_without_room(context, full, seen.problems),
            ]
    except (OSError, subprocess.CalledProcessError):
        texts = ["a full disk: not run: no file system may be mounted here"]
    return Seen(seen.times + 2, "; ".join([seen.text, *texts]), seen.problems)


@contextmanager
def _full_disk(folder: Path) -> Iterator[Path]:
    """A mounted file system without a free byte."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True, check=True)
    try:
        (folder / "log").touch()
        with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        yield folder
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=True)


def _publish_without_room(context: Context, full: Path, problems: list[str]) -> str:
    server = context.server
    model = server.repository / "alexnet" / str(served_version(server.repository)) / "model.onnx"
    done = server.run_command("publish", model, "--repository", full / "model_repository")
    problems += one_line(done, "a publication to a full disk")
    told = done.stderr.replace(f"{server.folder}/", "")
    return f"a publication to a full disk: {' '.join(told.split())[:160]}"


def _serve_without_room(context: Context, full: Path, problems: list[str]) -> str:
    """A server whose log's disk is full heals a model all the same."""
    second = ServedCopy(context.server.repository, context.server.folder / "second")
    second.triton_log = full / "log"
    with ExitStack() as stack:
        stack.callback(second.stop)
        second.start()
        os.kill(second.stubs("preprocess")[0], 9)
        seconds = second.seconds_to_right_answer(GIVE_UP_S)
    if seconds > context.scale.healthy_s:
        problems.append(f"a full disk for the log: healed after {seconds:.1f} s")
    return f"a full disk for the log: healed after {seconds:.1f} s"


# ---- 27


def tls(context: Context) -> Seen:
    """Certificates that are none or fit no key, at the server; false authorities and no TLS at all, at callers."""
    server, folder = context.server, context.server.folder / "starts"
    folder.mkdir(exist_ok=True)
    good, other = _certificate(folder / "good"), _certificate(folder / "other")
    (folder / "text.pem").write_text("no certificate")
    (folder / "empty.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    key, repository = ("--tls-key", good / "certificate.key"), server.repository
    cert = ("--tls-cert", good / "certificate.pem")
    starts = {
        "a certificate that is text": (*key, "--tls-cert", folder / "text.pem"),
        "a certificate that is not there": (*key, "--tls-cert", folder / "nowhere.pem"),
        "a certificate without its key": cert,
        "an empty certificate": (*key, "--tls-cert", folder / "empty.pem"),
        "another certificate's key": (*cert, "--tls-key", other / "certificate.key"),
    }
    seen = _refused(context, {name: partial(_serve, server, repository, *words) for name, words in starts.items()})
    if len(context.doors) < 2:
        return Seen(seen.times, f"{seen.text}; no gateway", seen.problems)
    through = _callers(context, context.gateway, other)
    return Seen(seen.times + through.times, f"{seen.text}; {through.text}", seen.problems + through.problems)


def _certificate(folder: Path) -> Path:
    environment = {**os.environ, "GATEWAY_SECRETS": str(folder), "GATEWAY_ENV": str(folder / "env")}
    subprocess.run([ROOT / "docker/prepare.sh"], env=environment, capture_output=True, check=True)
    return folder


def _callers(context: Context, gateway: Door, other: Path) -> Seen:
    """Callers that trust nobody or somebody else, and bytes that are no TLS; then one that is right."""
    image = context.server.folder / "starts" / "image.jpg"
    image.write_bytes(context.corpus.images[0])
    url = ("--url", gateway.url)

    def classify(*words: object) -> CompletedProcess[str]:
        return context.server.run_command("classify", image, *words)

    seen = _refused(
        context,
        {
            "a caller without the authority": lambda: classify(*url),
            "a caller with another authority": lambda: classify(*url, "--ca", other / "certificate.pem"),
            "a caller without TLS": lambda: classify("--url", gateway.url.replace("https", "http")),
        },
        code=UNREACHABLE,
    )
    _send_no_tls(gateway, (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff", bytes(1000), b"\x80" * 70_000))
    tally, question = Tally(), context.corpus.question([0])
    outcome, answer = ask(gateway, question.body, question.headers)
    tally.add(context.corpus.judge_json(question, answer) if outcome == "HTTP 200" else outcome)
    problems = seen.problems + ([] if tally.counts[RIGHT] else [f"after bytes that are no TLS: {tally}"])
    return Seen(seen.times + 5, seen.text, problems)


def _send_no_tls(gateway: Door, starts: Sequence[bytes]) -> None:
    for start in starts:
        with (
            suppress(OSError),
            socket.create_connection((HOST, int(gateway.http_address.rpartition(":")[2])), 5) as connection,
        ):
            connection.sendall(start)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)


CLASSES = [
    FaultClass(
        23, "corrupt files", "model, configuration, manifest, reference image: starts on copies", corrupt_files, False
    ),
    FaultClass(24, "no port, no room", "a taken port, folders that cannot be written, a full disk", no_room, False),
    FaultClass(27, "TLS that cannot be believed", "certificates, keys, authorities, bytes that are no TLS", tls, False),
]
