"""Models that are not there or are no classifiers, what `info` says, and gateways that refuse."""

import asyncio
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import grpc
import pytest

from alexnet_triton.client import Classifier, Config
from alexnet_triton.client.cli import main
from alexnet_triton.client.errors import AccessDenied, ModelNotFound, Overloaded, ServerError, TlsError, Unsupported
from alexnet_triton.client.grpc_transport import PUSHBACK
from alexnet_triton.client.servers import parse_retry_after
from alexnet_triton.client.session import Session
from answers import by_torch
from commands import classify
from embedded_triton import REPOSITORY, Triton
from photographs import jpeg
from tests.waiting import wait_for
from web import Quiet, recording, serving

LOW = 60  # requests of low priority, which take 1.5 s


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "nosuch"], "Request for unknown model: 'nosuch' is not found; this server has "),
        (["--model-version", "7"], "'classify' version 7 is not found; this server has "),
        (["--model", "adder"], "it takes INPUT0 FP32 [16], INPUT1 FP32 [16] and gives OUTPUT0 FP32 [16], batches of 8"),
    ],
)
def test_one_line_lists_what_the_server_has(
    triton: Triton, scheme: str, words: list[str], said: str, pictures: list[Path]
) -> None:
    done = classify(pictures[0], "--url", triton.urls[scheme], *words)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (3, b"", 1)
    assert said in done.stderr.decode()
    assert b"this server has adder (version 1), alexnet (version 1), classify (version 1)" in done.stderr


def test_an_index_is_open_over_http_and_closed_over_grpc(triton: Triton) -> None:
    """This project's own server closes it; then the models are read from the statistics, with the same result."""

    async def index(url: str) -> Sequence[object]:
        session = Session(Config(urls=(url,)))
        try:
            return await session.pool.endpoints[0].transport.index(10)
        finally:
            await session.close()

    assert len(asyncio.run(index(triton.urls["http"]))) == 4
    with pytest.raises(ServerError):
        asyncio.run(index(triton.urls["grpc"]))


def test_sending_what_the_model_does_not_take(url: str, pictures: list[Path]) -> None:
    done = classify(pictures[0], "--url", url, "--model", "alexnet", "--send", "encoded")
    assert done.returncode == 3
    assert b"it takes pixels, not encoded; use --send pixels" in done.stderr


def test_labels_of_the_caller(url: str, pictures: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(10)))
    done = classify(pictures[0], "--url", url, "--labels", names, "--top", 1)
    assert f"class {by_torch(pictures[0].read_bytes()).argmax()}".encode() in done.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or directory"),
        (b"only\n", "1 names for the 10 classes of 'classify'"),
        (b"one\n" * 11, "11 names for the 10 classes of 'classify'"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_labels_that_do_not_fit_are_answered_with_the_servers_own(
    triton: Triton, pictures: list[Path], tmp_path: Path, content: bytes | None, said: str
) -> None:
    names, output = tmp_path / "names.txt", tmp_path / "results.jsonl"
    output.write_text("kept")
    if content is not None:
        names.write_bytes(content)
    done = classify(pictures[0], "--url", triton.urls["grpc"], "--labels", names, "--output", output)
    listed = ", ".join((REPOSITORY / "classify/labels.txt").read_text().split("\n")[:10])
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"alexnet-classify: --labels {names}: {said}; without it they are {listed}\n"
    assert output.read_text() == "kept"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_request_of_high_priority_overtakes(triton: Triton, scheme: str, pictures: list[Path]) -> None:
    """Requests that wait for a slow model are answered after one that came last."""
    order: list[str] = []
    low = ThreadPoolExecutor(LOW)
    with Classifier(triton.urls[scheme], model="slow", concurrency=LOW) as classifier:
        classifier.classify(pictures[0])
        waiting = [low.submit(lambda: order.append(str(classifier.classify(pictures[1]).path))) for _ in range(LOW)]
        while len(order) < 2:
            time.sleep(0.005)
        asked = ["--url", triton.urls[scheme], "--model", "slow", "--priority", "1", "--output", os.devnull]
        assert main([str(pictures[2]), *asked]) == 0
        order.append("high")
        for each in waiting:
            each.result()
    low.shutdown()
    assert len(order) == LOW + 1
    assert order.index("high") < LOW - 5


def test_improbable_classes_are_left_out(url: str, pictures: list[Path]) -> None:
    done = classify(pictures[0], "--url", url, "--threshold", 0.2, "--top", 10, "--format", "json")
    shown = [label["probability"] for label in json.loads(done.stdout)["top"]]
    assert shown == pytest.approx(
        sorted((p for p in by_torch(pictures[0].read_bytes()) if p >= 0.2), reverse=True), abs=3e-6
    )


def test_info(url: str) -> None:
    facts = json.loads(classify("info", "--url", url, "--format", "json").stdout)
    assert facts["server"]["version"] == "2.51.0"
    assert facts["model"]["takes"] == "encoded BYTES [1]"
    assert facts["model"]["max_batch"] == 64
    assert facts["model"]["labels"][::9] == ["T-shirt", "Ankle boot"]
    text = classify("info", "--url", url).stdout.decode()
    assert "batching  up to 64, dynamic, waiting at most 0 us for more" in text
    assert "model     alexnet 1 READY" in text


def test_verbose_says_where_the_time_went(url: str, pictures: list[Path]) -> None:
    def lines() -> list[str]:
        return classify(pictures[0], pictures[1], "--url", url, "--verbose").stderr.decode().splitlines()

    first, _, _ = lines()
    assert first.startswith(f"{pictures[0]}: read ")
    assert "attempt 1, 1 images" in first
    # Triton counts an image a little after its answer, so now and then a run sees one less.
    wait_for(lambda: lines()[-1].startswith("server: classify 1: 2 images in "))


def test_completion_help_and_version() -> None:
    assert b"complete -" in classify("--completion", "bash").stdout
    text = classify("--help").stdout
    assert all(part in text for part in (b"exit codes", b"examples", b"--resume", b"when things go wrong"))
    assert classify("info", "--help").returncode == 0
    assert classify("--version").stdout.startswith(b"alexnet-classify ")


@pytest.mark.parametrize(("text", "problem"), [("nothing", "No such file"), ("Authorization Bearer", "'Name: value'")])
def test_headers_of_a_file(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / text
    if text != "nothing":
        file.write_text(f"X-One: 1\n\n{text}\n")
    done = classify("x.jpg", "--header", f"@{file}")
    assert done.returncode == 2
    assert problem in done.stderr.decode()
    assert "Bearer" not in done.stderr.decode().replace(str(file), "")  # it may be a key
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def gateway(status: int, headers: dict[str, str], page: bytes = b"") -> Iterator[str]:
    """An HTTP gateway that refuses everything in one way."""

    class Refusing(Quiet):
        def respond(self) -> None:
            self.answer(status, page, **headers)

    with serving(Refusing) as url:
        yield url


@pytest.mark.parametrize("status", [429, 503])
def test_a_gateway_that_says_when_to_come_back(status: int) -> None:
    with gateway(status, {"Retry-After": "7"}) as url, Classifier(url, timeout_s=3) as classifier:
        with pytest.raises(Overloaded) as caught:
            classifier.classify(jpeg(1))
        assert caught.value.retry_after_s == 7


def test_another_server_is_asked_before_one_that_said_when_to_come_back(triton: Triton) -> None:
    with gateway(503, {"Retry-After": "30"}) as busy, Classifier(busy, triton.urls["http"], timeout_s=10) as classifier:
        started = time.monotonic()
        assert [classifier.classify(jpeg(1)).timing.attempts for _ in range(2)] == [1, 1]
        assert time.monotonic() - started < 5


def test_when_to_come_back_is_seconds_or_a_date() -> None:
    assert [parse_retry_after(text) for text in ("0", " 12 ", "", None, "soon", "-3", "\xb2")] == [0, 12, *[None] * 5]
    past, future = "Sun, 06 Nov 1994 08:49:37 -0000", formatdate(time.time() + 1000, usegmt=True)
    assert parse_retry_after(past) == 0
    assert parse_retry_after(future) == pytest.approx(1000, abs=100)


@pytest.mark.parametrize(
    ("name", "value", "calls"), [(PUSHBACK, "-1", 1), (PUSHBACK, "10", 3), ("retry-after", "0", 3)]
)
def test_a_grpc_server_that_says_when_to_come_back(name: str, value: str, calls: int) -> None:
    asked = 0

    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        nonlocal asked
        asked += 1
        context.set_trailing_metadata(((name, value),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    methods = {"ModelConfig": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Classifier(f"grpc://127.0.0.1:{port}", retries=2) as classifier, pytest.raises(Overloaded):
        classifier.classify(jpeg(1))
    server.stop(None).wait()
    assert asked == calls


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_gets_no_key(status: int, pictures: list[Path]) -> None:
    with recording() as (other, heard), gateway(status, {"Location": f"{other}/v2"}) as url:
        done = classify(pictures[0], "--url", url, "--header", "X-Api-Key: secret", "--timeout", 5)
    assert heard == []
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (3, b"", 1)
    assert f"it redirects to {other}/v2; name that server with --url" in done.stderr.decode()


def test_a_redirection_to_no_address_is_one_of_the_tree() -> None:
    expected = pytest.raises(Unsupported, match=r"it redirects to http://\[::1; ")
    with gateway(307, {"Location": "http://[::1"}) as url, Classifier(url) as classifier, expected:
        classifier.classify(jpeg(1))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AccessDenied), (403, AccessDenied), (404, ModelNotFound), (415, Unsupported), (422, Unsupported)],
)
def test_a_gateway_that_refuses(status: int, kind: type[Exception]) -> None:
    with gateway(status, {}) as url, Classifier(url) as classifier, pytest.raises(kind):
        classifier.classify(jpeg(1))


def test_a_gateway_that_wants_a_certificate() -> None:
    page = b"<html>400 No required SSL certificate was sent</html>"  # as nginx says it
    with gateway(400, {}, page) as url, Classifier(url) as classifier, pytest.raises(TlsError, match="--cert"):
        classifier.classify(jpeg(1))
