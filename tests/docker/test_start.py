"""Starting and ending the gateway."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.gateway import START, Gateway, run
from tests.docker.test_limits import begin_slowly
from tests.serving.tiny import jpeg


def refusal(gateway: Gateway, **changes: str) -> str:
    done = run(START, "check", **{**gateway.environment, **changes})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gateway: ")
    return line


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("GATEWAY_KEYS", "/nowhere/keys", "no file of API keys"),
        ("GATEWAY_CERT", "/nowhere/certificate.pem", "no certificate"),
        ("GATEWAY_CERT_KEY", "/nowhere/certificate.key", "no key of the certificate"),
        ("GATEWAY_ADDRESS_CONNECTIONS", "0", "GATEWAY_ADDRESS_CONNECTIONS is '0'"),
        ("GATEWAY_RATE", "many", "GATEWAY_RATE is 'many'"),
        ("GATEWAY_BODY_MIB", "0", "GATEWAY_BODY_MIB is '0'"),
        ("GATEWAY_MEMORY_MIB", "255", "give 256 or more"),
        ("GATEWAY_PRIORITY_KEYS", "me you;", "GATEWAY_PRIORITY_KEYS has 'you;'"),
        ("GATEWAY_RETRIES", "maybe", "on or off"),
        ("GATEWAY_LISTEN", "8443;daemon", "GATEWAY_LISTEN"),
        ("GATEWAY_METRICS", "9145;daemon", "GATEWAY_METRICS"),
        ("GATEWAY_PAGE", "/nowhere", "no page"),
        ("GATEWAY_NGINX", "/nowhere/nginx", "no nginx"),
        ("TRITON_HTTP", "127.0.0.1", "not HOST:PORT"),
        ("TRITON_GRPC", "triton:8001;", "not HOST:PORT"),
        ("TRITON_GRPC", " ", "names no Triton"),
    ],
)
def test_refuses_in_one_line(new_gateway: type[Gateway], variable: str, value: str, words: str) -> None:
    assert words in refusal(new_gateway(), **{variable: value})


def test_njs_is_built_in_or_loaded_as_in_the_image_of_nginx(new_gateway: type[Gateway], tmp_path: Path) -> None:
    gateway, nginx = new_gateway(), tmp_path / "nginx"
    nginx.write_text(f'#!/bin/sh\necho "configure arguments: --with-compat" >&2\n[ -z "$6" ] || cp "$6" {tmp_path}\n')
    nginx.chmod(0o755)
    changes = {"GATEWAY_NGINX": str(nginx), "GATEWAY_MODULES": str(tmp_path)}
    assert f"no njs in '{nginx}' or '{tmp_path}': install nginx-module-njs" in refusal(gateway, **changes)
    (tmp_path / "ngx_http_js_module.so").touch()
    assert run(START, "check", **{**gateway.environment, **changes}).returncode == 0
    assert f"load_module {tmp_path}/ngx_http_js_module.so;" in (tmp_path / "nginx.conf").read_text().splitlines()


@pytest.mark.parametrize("variable", ["GATEWAY_KEYS", "GATEWAY_CERT_KEY"])
def test_refuses_secrets_that_others_can_read(new_gateway: type[Gateway], tmp_path: Path, variable: str) -> None:
    gateway = new_gateway()
    open_to_all = tmp_path / "open"
    open_to_all.write_bytes(Path(gateway.environment[variable]).read_bytes())
    open_to_all.chmod(0o644)
    assert "chmod 600" in refusal(gateway, **{variable: str(open_to_all)})


@pytest.mark.parametrize("line", ['"Bearer abc" short;', '"Bearer ' + 64 * "0" + '" a; server', "include /etc/passwd;"])
def test_refuses_a_broken_line_of_keys(new_gateway: type[Gateway], tmp_path: Path, line: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# callers\n{line}\n")
    keys.chmod(0o600)
    assert "line 2" in refusal(new_gateway(), GATEWAY_KEYS=str(keys))


def test_names_of_tritons_are_resolved_again(new_gateway: type[Gateway]) -> None:
    """As compose's service names are."""
    gateway = new_gateway(triton_http=["localhost:8000"], triton_grpc=["localhost:8001"])
    assert run(START, "check", **gateway.environment).returncode == 0


def test_new_keys_are_taken_without_a_stop(new_gateway: type[Gateway]) -> None:
    with new_gateway() as gateway:
        late = gateway.key("late")
        assert gateway.infer(jpeg(1), key=late).status == 401
        gateway.reload()
        deadline = time.monotonic() + 10
        while gateway.infer(jpeg(1), key=late).status == 401:
            assert time.monotonic() < deadline, gateway.errors.read_text()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the gateway makes its folder; nginx's workers, another user where root starts it, can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_at_the_end(new_gateway: type[Gateway], runs: Path, number: int) -> None:
    gateway = new_gateway()
    gateway.start()
    connection, rest = begin_slowly(gateway)
    with connection:
        assert gateway.infer(jpeg(1)).status == 200
        ended = threading.Thread(target=gateway.stop, args=(number,))
        ended.start()
        while gateway.listens():
            time.sleep(0.01)
        connection.sendall(rest)
        assert connection.recv(12) == b"HTTP/1.1 200"
    ended.join()
    assert gateway.process
    assert gateway.process.returncode == 0
    assert not list(runs.glob("tmp.*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.06, 0.1, 0.15, 0.25])
def test_a_signal_at_any_moment_of_the_start(
    new_gateway: type[Gateway], runs: Path, number: int, delay_s: float
) -> None:
    """One to read the keys again does no harm; one to end leaves neither nginx nor its folder."""
    gateway = new_gateway()
    with subprocess.Popen([START], env=os.environ | gateway.environment, stderr=subprocess.DEVNULL) as process:
        while not list(runs.glob("tmp.*")):  # the shell has begun
            time.sleep(0.001)
        time.sleep(delay_s)
        process.send_signal(number)
        if number == signal.SIGHUP:
            while not gateway.listens():
                assert process.poll() is None
                time.sleep(0.01)
            assert gateway.infer(jpeg(1)).status == 200
            process.terminate()
        assert process.wait(20) == 0
    assert not gateway.listens()
    assert not list(runs.glob("tmp.*"))
