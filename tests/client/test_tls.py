"""Answers over TLS, with and without client certificates, and a line of its own for each thing that is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alexnet_triton.client import Classifier, Tls
from alexnet_triton.client.errors import TlsError
from answers import agree, by_torch
from commands import classify, lines
from embedded_triton import Triton
from photographs import jpeg
from tls import Authority, Pair, end_point

UNTRUSTED = "its certificate is signed by an authority that is not trusted here; give that authority with --ca"


@dataclass(frozen=True)
class Papers:
    """Certificates. `ca` signed all but `strangers`, which is a client's."""

    ca: Path
    other_ca: Path
    server: Pair
    expired: Pair
    elsewhere: Pair
    client: Pair
    strangers: Pair


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(folder, "authority"), Authority(folder, "other")
    return Papers(
        ca=authority.ca.cert,
        other_ca=other.ca.cert,
        server=authority.sign("server"),
        expired=authority.sign("expired", days=-1),
        elsewhere=authority.sign("elsewhere", address="127.0.0.2"),
        client=authority.sign("client"),
        strangers=other.sign("client"),
    )


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def target(scheme: str, triton: Triton) -> int:
    return triton.grpc_port if scheme == "grpc" else triton.http_port


def words(pair: Pair) -> tuple[str, Path, str, Path]:
    return "--cert", pair.cert, "--key", pair.key


def test_images_are_classified_over_tls(scheme: str, target: int, papers: Papers, pictures: list[Path]) -> None:
    with end_point(target, papers.server) as port:
        url = f"{scheme}s://127.0.0.1:{port}"
        done = classify(*pictures[:3], "--url", url, "--ca", papers.ca, "--format", "json")
        with Classifier(url, tls=Tls(ca=str(papers.ca))) as classifier:
            assert agree(classifier.classify(jpeg(1)), by_torch(jpeg(1)))
    assert (done.returncode, done.stderr) == (0, b"")
    best = [by_torch(path.read_bytes()).argmax() for path in pictures[:3]]
    assert [line["top"][0]["index"] for line in lines(done.stdout)] == best


def test_both_sides_show_certificates(scheme: str, target: int, papers: Papers, pictures: list[Path]) -> None:
    with end_point(target, papers.server, client_ca=papers.ca) as port:
        asked = (pictures[0], "--url", f"{scheme}s://127.0.0.1:{port}", "--ca", papers.ca, "--timeout", 10)
        known, unknown = classify(*asked, *words(papers.client)), classify(*asked, *words(papers.strangers))
        nameless = classify(*asked)
    assert (known.returncode, known.stderr) == (0, b"")
    assert refusal(unknown) == (
        f"it does not accept the certificate {papers.strangers.cert}; "
        "give one with --cert and --key whose authority the server trusts"
    )
    assert refusal(nameless) == (
        "it ends the connection, as servers do that want a client certificate; give one with --cert and --key"
    )


@pytest.mark.parametrize(
    ("server", "ca", "said"),
    [
        ("server", "other_ca", UNTRUSTED),
        ("server", None, UNTRUSTED),
        ("expired", "ca", "its certificate has expired; whoever runs the server must renew it"),
        ("elsewhere", "ca", "its certificate is for another address; name the host that it is for with --url"),
    ],
)
def test_a_certificate_that_is_not_believed(
    scheme: str, target: int, papers: Papers, pictures: list[Path], server: str, ca: str | None, said: str
) -> None:
    trust = ("--ca", getattr(papers, ca)) if ca else ()
    with end_point(target, getattr(papers, server)) as port:
        url = f"{scheme}s://127.0.0.1:{port}"
        done = classify(pictures[0], "--url", url, *trust)
        tls = Tls(ca=str(getattr(papers, ca)) if ca else None)
        with Classifier(url, tls=tls) as classifier, pytest.raises(TlsError, match=said.split(";")[0]):
            classifier.classify(jpeg(1))
    assert refusal(done) == said


def refusal(done: object) -> str:
    """The one line of a command that no server answered, without the program and the host."""
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (3, b"", 1)  # type: ignore[attr-defined]
    return done.stderr.decode().strip().split(": ", 2)[2]  # type: ignore[attr-defined]


def test_a_server_that_does_not_speak_tls(scheme: str, target: int, pictures: list[Path]) -> None:
    done = classify(pictures[0], "--url", f"{scheme}s://127.0.0.1:{target}", "--timeout", 3)
    assert refusal(done).startswith(
        f"it does not speak TLS; ask it with --url grpc://127.0.0.1:{target}"
        if scheme == "grpc"
        else "cannot connect: the connection was closed"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--key", "key"), "--key is given without --cert"),
        (("--cert", "cert"), "not a certificate and its unencrypted key in PEM"),
        (("--cert", "jpeg", "--key", "key"), "not a certificate and its unencrypted key in PEM"),
        (("--cert", "cert", "--key", "other key"), "not a certificate and its unencrypted key in PEM"),
        (("--ca", "jpeg"), "no certificate in PEM in it"),
        (("--ca", "nothing"), "no such file or directory"),
    ],
)
def test_files_that_are_no_certificates(
    scheme: str, papers: Papers, pictures: list[Path], flags: tuple[str, ...], said: str
) -> None:
    files = {
        "key": papers.client.key,
        "cert": papers.client.cert,
        "other key": papers.strangers.key,
        "jpeg": pictures[0],
        "nothing": papers.ca.with_name("none.pem"),
    }
    named = [files.get(word, word) for word in flags]
    done = classify(pictures[0], "--url", f"{scheme}s://127.0.0.1:1", *named)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert said in done.stderr.decode()


@pytest.fixture(scope="module")
def strict(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Triton's own TLS, which wants client certificates."""
    flags = {
        "use-ssl": "true",
        "use-ssl-mutual": "true",
        "server-cert": papers.server.cert,
        "server-key": papers.server.key,
        "root-cert": papers.ca,
    }
    extra = tuple(f"--grpc-{name}={value}" for name, value in flags.items())
    with Triton(tmp_path_factory.mktemp("strict"), extra=extra) as server:
        server.start()
        yield server


def test_tritons_own_tls(strict: Triton, papers: Papers, pictures: list[Path]) -> None:
    asked = (pictures[0], "--url", strict.urls["grpc"].replace("grpc:", "grpcs:"), "--ca", papers.ca)
    done = classify(*asked, *words(papers.client), "--format", "json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines(done.stdout)[0]["top"][0]["index"] == by_torch(pictures[0].read_bytes()).argmax()
    assert refusal(classify(*asked)).endswith("give one with --cert and --key")
    assert "does not accept the certificate" in refusal(classify(*asked, *words(papers.strangers)))
