"""gRPC over TLS, by the client that a person runs, with certificates that are made here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet_triton.serving import Server, ServingError
from alexnet_triton.serving.launch import Tls
from tests.serving.tiny import answer, jpeg, network, running_server

ROOT = Path(__file__).resolve().parents[2]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a caller's certificate that it signed, and a picture."""
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2")
    _openssl("req", "-x509", *key, "-subj", "/CN=authority", "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    for name in ("server", "caller"):
        signed = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
        _openssl("req", "-x509", *key, "-subj", f"/CN={name}", *signed, *files)
    (folder / "picture.jpg").write_bytes(jpeg(seed=6))
    return folder


@pytest.fixture(scope="module")
def mutual(tiny_repository: Path, certificates: Path) -> Iterator[Server]:
    tls = Tls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    with running_server(tiny_repository, tls=tls) as server:
        yield server


def _classify(server: Server, folder: Path, *options: str | Path, scheme: str = "grpcs") -> subprocess.CompletedProcess:
    command = [sys.executable, "client/classify.py", folder / "picture.jpg", "--format", "json"]
    url = f"{scheme}://{server.grpc_address}"
    return subprocess.run(
        [*map(str, command), "--url", url, *map(str, options)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_caller_with_a_certificate_is_answered(mutual: Server, certificates: Path) -> None:
    own = ("--cert", certificates / "caller.pem", "--key", certificates / "caller.key")
    done = _classify(mutual, certificates, "--ca", certificates / "ca.pem", *own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top"][0]["index"] == answer(network(), jpeg(seed=6)).argmax()


def test_a_caller_without_one_is_not(mutual: Server, certificates: Path) -> None:
    done = _classify(mutual, certificates, "--ca", certificates / "ca.pem", "--timeout", "3")
    assert done.returncode == 3
    assert done.stdout == ""


def test_tls_without_its_key_or_with_anything_else_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alexnet_triton", "serve", "--tls-cert", str(tmp_path / "nothing.pem")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "alexnet-triton serve: TLS needs both --tls-cert and --tls-key\n")
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(ServingError, match=r"nothing\.pem cannot be read \(No such file"):
        Tls(tmp_path / "nothing.pem", tmp_path / "text").check()
    with pytest.raises(ServingError, match="text is no PEM file"):
        Tls(tmp_path / "text", tmp_path / "text").check()
