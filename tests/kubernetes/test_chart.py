"""The chart as Helm takes it: lint, values that are refused, and containers that start the project's own programs."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest
import yaml

from alexnet_triton.serving.cli import _serve_options
from tests.docker.gateway import NGINX, START, make_secrets, run
from tests.kubernetes.chart import (
    CHART,
    FOLDER,
    INSTALLATIONS,
    ROOT,
    Document,
    find,
    lay_over,
    pod_of,
    pods,
    render,
    rendered,
    values,
    with_value,
)
from tests.kubernetes.policies import DOCKERFILE


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_lint(installation: str) -> None:
    report = helm_python.lint(CHART, values(installation), strict=True, namespace="vision")
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


WRONG = [
    ("gateway.servce", {}, "at '/gateway': additional properties 'servce'"),
    ("replicas", 2, "at '': additional properties 'replicas'"),
    ("accelerator", "tpu", "at '/accelerator': value must be one of 'cpu', 'gpu'"),
    ("images.serve", "registry/serve:latest", "at '/images/serve'"),
    ("images.serve", "registry:5000/serve", "at '/images/serve'"),
    ("images.gateway", "", "at '/images/gateway'"),
    ("cpu.cores", "4", "at '/cpu/cores': got string, want integer"),
    ("cpu.cores", 0.5, "at '/cpu/cores'"),
    ("cpu.memory", "8G", "at '/cpu/memory'"),
    ("triton.replicas", 0, "at '/triton/replicas': minimum: got 0, want 1"),
    ("gateway.keysSecret", "", "at '/gateway/keysSecret'"),
    ("gateway.certificateSecret", "", "at '/gateway/certificateSecret'"),
    ("gateway.priorityKeys", ["me;"], "at '/gateway/priorityKeys/0'"),
    ("gateway.service.type", "ExternalName", "at '/gateway/service/type'"),
    ("monitoring.prometheus.podLabels", "prometheus", "at '/monitoring/prometheus/podLabels'"),
    ("autoscaling.with", "hpa", "at '/autoscaling/with'"),
    ("autoscaling.scaleDown.percent", 0, "at '/autoscaling/scaleDown/percent'"),
    ("repository.source", "git", "at '/repository/source'"),
    ("repository.source", "claim", "at '/repository/claim/name'"),
    ("repository.source", "objectStore", "at '/repository/objectStore/remote'"),
    ("repository.image.reference", "", "at '/repository/image/reference'"),
    ("accelerator", "gpu", "at '/images/export'"),
    ("gateway", None, "at '': missing property 'gateway'"),
    # of two values
    ("autoscaling.minReplicas", 11, "autoscaling.minReplicas is 11, above autoscaling.maxReplicas, 10"),
    ("autoscaling.with", "prometheus-adapter", "set monitoring.enabled"),
    ("triton.gracePeriodSeconds", 40, "triton.gracePeriodSeconds is 40: give more"),
    ("gateway.gracePeriodSeconds", 18, "gateway.gracePeriodSeconds is 18: give more"),
    ("gateway.memoryMib", 255, "gateway.memoryMib is 255: give 16 times gateway.bodyMib or more, 256"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_wrong_value_is_refused_with_its_name(name: str, value: object, words: str) -> None:
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=re.escape(words)):
        render(with_value(values("cpu"), name, value))


def test_the_schema_is_strict_everywhere() -> None:
    """No object takes an unknown name, and none of what the templates use can be set to nothing."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    objects = [each for each in inside(schema) if "properties" in each and each.get("type") == "object"]
    assert len(objects) > 12
    for each in objects:
        assert each["additionalProperties"] is False
        if "tolerationSeconds" not in each["properties"]:
            assert set(each["required"]) >= each["properties"].keys() - {"global"}


def inside(value: object) -> Iterator[Document]:
    """Every mapping in a value."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from inside(each)


def test_nothing_of_a_cluster_is_guessed() -> None:
    """Without values the chart names what has to be given."""
    with pytest.raises(helm_python.HelmValuesError) as error:
        render({})
    refused = set(re.findall(r"at '/(\w+/\w+(?:/\w+)?)': ''", str(error.value)))
    assert refused == {
        "images/serve",
        "images/gateway",
        "gateway/keysSecret",
        "gateway/certificateSecret",
        "repository/image/reference",
    }


# ---- files stand once


@pytest.mark.parametrize("name", ["rules.yml", "dashboard.json"])
def test_rules_and_dashboard_are_those_of_docker(name: str, tmp_path: Path) -> None:
    """As links in the project, and as files in what Helm packages."""
    link = CHART / "files" / name
    assert link.is_symlink()
    assert link.resolve().parent in (ROOT / "docker/prometheus", ROOT / "docker/grafana")
    archive = helm_python.package(CHART, destination=tmp_path)
    with tarfile.open(archive) as files:
        member = files.extractfile(f"alexnet-triton/files/{name}")
        assert member
        assert member.read() == link.read_bytes()


def test_the_release_has_every_rule_and_the_dashboard() -> None:
    documents = rendered("gpu")
    rules = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text())["groups"]
    assert find(documents, "PrometheusRule")["spec"]["groups"][1:] == rules
    (dashboard,) = find(documents, "ConfigMap")["data"].values()
    assert json.loads(dashboard) == json.loads((ROOT / "docker/grafana/dashboard.json").read_text())


def test_scrapes_are_of_the_job_that_the_rules_name() -> None:
    documents = rendered("gpu")
    monitor, service = find(documents, "ServiceMonitor")["spec"], find(documents, "Service", "triton")
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "triton"
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_gateways_metrics_are_scraped_where_they_are_and_no_service_opens_them() -> None:
    documents = rendered("gpu")
    (container,) = pod_of(find(documents, "Deployment", "gateway"))["containers"]
    (endpoint,) = find(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    (port,) = [each["containerPort"] for each in container["ports"] if each["name"] == endpoint["port"]]
    assert {"name": "GATEWAY_METRICS", "value": f"0.0.0.0:{port}"} in container["env"]
    assert [each["targetPort"] for each in find(documents, "Service", "gateway")["spec"]["ports"]] == ["https"]
    assert "metrics" not in [
        each["name"] for each in pod_of(find(rendered("cpu"), "Deployment", "gateway"))["containers"][0]["ports"]
    ]


# ---- what the containers run


def entrypoint(image: str) -> list[str]:
    found = re.search(rf"^FROM [^\n]+ AS {image}\n.*?^ENTRYPOINT (\[.*?\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("installation", [*INSTALLATIONS, "kserve"])
def test_serve_takes_the_arguments(installation: str) -> None:
    """By its own parser, behind the image's entry point."""
    if installation == "kserve":
        pod = yaml.safe_load((FOLDER / "kserve.yaml").read_text())["spec"]["predictor"]
    else:
        pod = pod_of(find(rendered(installation), "Deployment", "triton"))
    (container,) = pod["containers"]
    assert "command" not in container
    program, command, *words = entrypoint("serve")
    options = _serve_options([*words, *container["args"]])
    assert (program, command) == ("alexnet-triton", "serve")
    assert options.variant == ("gpu" if "gpu" in installation else "cpu")
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]] + ["/mnt/models"]
    assert any(options.repository.is_relative_to(mount) for mount in mounts)
    assert options.log.is_relative_to("/tmp")
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (
        named.items()
        <= {"http": options.http_port, "http1": options.http_port}.items()
        | {
            "grpc": options.grpc_port,
            "metrics": options.metrics_port,
        }.items()
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the init container lays them: private copies, under the image's names."""
    made, copied = make_secrets(tmp_path_factory.mktemp("made")), tmp_path_factory.mktemp("copied")
    for name, file in {"keys": "keys", "certificate": "certificate.pem", "certificate_key": "certificate.key"}.items():
        shutil.copy(made / file, copied / name)
        (copied / name).chmod(0o600)
    return copied


def image_environment(secrets: Path) -> dict[str, str]:
    """The variables of the gateway's image, with the folder of its secrets."""
    block = re.search(r" AS gateway\n.*?^ENV (.*?)\n(?! )", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert block
    pairs = dict(re.findall(r"(\w+)=(\S+)", block[1]))
    return {name: value.replace("/run/secrets", str(secrets)) for name, value in pairs.items()}


def check(secrets: Path, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Have the start script and a real nginx check the image's variables with those given."""
    return run(START, "check", **image_environment(secrets) | given | {"GATEWAY_NGINX": str(NGINX)})


@pytest.mark.parametrize("installation", ["cpu", "gpu"])
def test_the_gateway_takes_its_variables(installation: str, secrets: Path) -> None:
    (container,) = pod_of(find(rendered(installation), "Deployment", "gateway"))["containers"]
    assert not {"command", "args"} & container.keys()
    (read,) = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
    assert read["mountPath"] == "/run/secrets"
    done = check(secrets, {each["name"]: each["value"] for each in container["env"]})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_variable_that_the_gateway_refuses_is_seen(secrets: Path) -> None:
    done = check(secrets, {"GATEWAY_RATE": "1e6"})
    assert (done.returncode, done.stderr) == (1, "gateway: GATEWAY_RATE is '1e6': give a whole number above 0\n")


def test_the_gateway_finds_the_tritons_by_their_full_name() -> None:
    documents = render(lay_over(values("cpu"), {"clusterDomain": "example.internal"}))
    (container,) = pod_of(find(documents, "Deployment", "gateway"))["containers"]
    service = find(documents, "Service", "triton")
    ports = {each["name"]: each["port"] for each in service["spec"]["ports"]}
    given = {each["name"]: each["value"] for each in container["env"]}
    host = f"{service['metadata']['name']}.vision.svc.example.internal"
    assert given["TRITON_HTTP"] == f"{host}:{ports['http']}"
    assert given["TRITON_GRPC"] == f"{host}:{ports['grpc']}"


def test_secrets_are_copied_as_the_gateway_wants_them(tmp_path: Path) -> None:
    """The init container's own command, on files that a group may read."""
    pod = pod_of(find(rendered("cpu"), "Deployment", "gateway"))
    given, copied = tmp_path / "given", tmp_path / "copied"
    given.mkdir()
    copied.mkdir()
    sources = pod["volumes"][0]["projected"]["sources"]
    for item in (item for source in sources for item in source["secret"]["items"]):
        (given / item["path"]).write_text("secret")
        (given / item["path"]).chmod(0o440)
    command = [
        word.replace("/run/secrets", str(copied)).replace("/secrets", str(given))
        for word in pod["initContainers"][0]["command"]
    ]
    for _ in range(2):  # a pod that gets a new sandbox runs its init containers again
        assert subprocess.run(command).returncode == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in copied.iterdir()}
    assert all(mode & 0o077 == 0 for mode in modes.values())
    assert {f"/run/secrets/{name}" for name in modes} == set(re.findall(r"=(/run/secrets/\w+)", DOCKERFILE))


def test_the_repository_is_copied_whole(tmp_path: Path) -> None:
    """By the init container's own command, a link and hidden files included."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "model_repository/classify").mkdir(parents=True)
    (source / "model_repository/.previous").mkdir()
    (source / "model_repository/classify/config.pbtxt").write_text("name")
    copy.mkdir()
    for installation, folder in (("cpu", "/artifacts"), ("gpu", "/source/artifacts")):
        (container, *_) = pod_of(find(rendered(installation), "Deployment", "triton"))["initContainers"]
        words = [word.replace(folder, str(source)).replace("/copy", str(copy)) for word in container["command"]]
        for _ in range(2):  # and again in a new sandbox
            assert subprocess.run(words).returncode == 0
        assert (copy / "model_repository/classify/config.pbtxt").read_text() == "name"
        assert (copy / "model_repository/.previous").is_dir()
        shutil.rmtree(copy / "model_repository")


def test_the_plan_is_built_by_the_script_of_the_image() -> None:
    (_, engine) = pod_of(find(rendered("gpu"), "Deployment", "triton"))["initContainers"]
    (script,) = engine["command"]
    assert os.access(ROOT / script, os.X_OK)
    assert f"COPY docker/make_model.sh {script} docker/" in DOCKERFILE
    mounts = {mount["mountPath"] for mount in engine["volumeMounts"]}
    given = {each["name"]: each["value"] for each in engine["env"]}
    assert {given["ARTIFACTS"], given["PLAN_CACHE"], given["HOME"]} <= mounts


def test_every_pod_is_of_an_image_with_its_user() -> None:
    """Whose user the pod's is too, so that what the image owns can be read."""
    for _, pod in pods(rendered("gpu")):
        assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in DOCKERFILE
