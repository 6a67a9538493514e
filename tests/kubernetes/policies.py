"""What operators may take for granted of the chart's documents: each policy gives the faults that it finds."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence

from alexnet_triton.export.settings import MAX_WAIT_S
from alexnet_triton.serving.control import PROGRESS_S, check_health
from alexnet_triton.serving.runs import STOP_TIMEOUT_S
from tests.kubernetes.chart import ROOT, Document, containers, pod_of, pods

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
DNS_TTL_S = 30  # of the plugins `kubernetes` and `cache` in the Corefile of kubeadm, and of a cache on the node
ENDPOINTS_S = 5  # until every node knows that a pod of a service with an address has gone
GATEWAY_DNS_S = int(re.findall(r"GATEWAY_RESOLVE_S:-(\d+)", (ROOT / "docker/gateway/start.sh").read_text())[0])
GATEWAY_EXIT_S = int(
    re.findall(r"worker_shutdown_timeout (\d+)s", (ROOT / "docker/gateway/nginx.conf.in").read_text())[0]
)
EXIT_S = {"triton": STOP_TIMEOUT_S, "gateway": GATEWAY_EXIT_S}  # from SIGTERM on
Documents = Sequence[Document]
Policy = Callable[[Documents], Iterator[str]]


def deployments(documents: Documents) -> dict[str, Document]:
    found = [each for each in documents if each["kind"] == "Deployment"]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in found}


def labels(deployment: Document) -> dict[str, str]:
    return deployment["spec"]["template"]["metadata"]["labels"]


def selects(selector: Document, deployment: Document) -> bool:
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels(deployment).items()


def of(documents: Documents, kind: str) -> list[Document]:
    return [each for each in documents if each["kind"] == kind]


def commands(probe: Document) -> list[str]:
    return probe.get("exec", {}).get("command", [])


# ---- healthy, and alive


def readiness_is_the_reference_answer(documents: Documents) -> Iterator[str]:
    """Asked as the image's own health check asks, and with the time that a busy server has."""
    (command,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[\"alexnet-triton.*\])", DOCKERFILE)
    question_s = inspect.signature(check_health).parameters["timeout_s"].default
    (triton,) = pod_of(deployments(documents)["triton"])["containers"]
    for name in ("startupProbe", "readinessProbe"):
        if commands(triton[name]) != json.loads(command):
            yield f"{name} does not ask for the reference answer"
        if triton[name].get("timeoutSeconds", 1) <= question_s + PROGRESS_S + 5:
            yield f"{name} cuts a busy server short"


def liveness_is_never_readiness(documents: Documents) -> Iterator[str]:
    """What is slow, loads or heals is not killed."""
    (triton,) = pod_of(deployments(documents)["triton"])["containers"]
    probe = triton["livenessProbe"]
    if commands(probe) or probe.get("httpGet", {}).get("path") != "/metrics":
        yield "liveness asks Triton, not its watcher"
    if probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10) < 60:
        yield "liveness has less than a minute"


def a_slow_start_is_awaited(documents: Documents) -> Iterator[str]:
    for component, pod in pods(documents):
        for container in pod["containers"]:
            probe = container.get("startupProbe", {})
            if probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10) < (
                120 if component == "triton" else 30
            ):
                yield f"{component} has too little time to start"


# ---- the end


def the_end_is_in_order(documents: Documents) -> Iterator[str]:
    """No gateway, and no caller, knows the pod any more when SIGTERM comes; SIGKILL comes after all that follows it."""
    for component, pod in pods(documents):
        sleep_s = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace_s = pod.get("terminationGracePeriodSeconds", 30)
        if sleep_s < (DNS_TTL_S + GATEWAY_DNS_S if component == "triton" else ENDPOINTS_S):
            yield f"{component} ends while it is still known"
        if not EXIT_S[component] < grace_s - sleep_s:
            yield f"{component} is killed while it ends"


def a_new_version_comes_before_the_old_one_goes(documents: Documents) -> Iterator[str]:
    for component, deployment in deployments(documents).items():
        rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0:
            yield f"{component} has fewer pods during a rollout"
        if component == "triton" and deployment["spec"].get("minReadySeconds", 0) <= DNS_TTL_S + GATEWAY_DNS_S:
            yield "a rollout goes on before the gateways know the new pod"


# ---- nodes


def a_drain_takes_one_pod_at_a_time(documents: Documents) -> Iterator[str]:
    budgets = [each["spec"] for each in of(documents, "PodDisruptionBudget")]
    for component, deployment in deployments(documents).items():
        if not any(each.get("maxUnavailable") == 1 and selects(each["selector"], deployment) for each in budgets):
            yield f"{component} has no budget"


def pods_are_spread(documents: Documents) -> Iterator[str]:
    for component, deployment in deployments(documents).items():
        constraints = pod_of(deployment).get("topologySpreadConstraints", [])
        keys = {each["topologyKey"] for each in constraints if selects(each["labelSelector"], deployment)}
        if keys != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{component} is not spread over zones and nodes"


def requests_are_limits(documents: Documents) -> Iterator[str]:
    """Triton starts an instance a core, so a core that others take away is missed."""
    for component, pod in pods(documents):
        for container in containers(pod):
            given = container.get("resources", {})
            if not {"cpu", "memory"} <= given.get("limits", {}).keys() or given["limits"] != given.get("requests"):
                yield f"{component}/{container['name']} has no resources of its own"


def gpus_are_where_they_are_asked_for(documents: Documents) -> Iterator[str]:
    pod = pod_of(deployments(documents)["triton"])
    (triton,) = pod["containers"]
    if "gpu" not in triton["args"]:
        if "nvidia.com/gpu" in json.dumps(pod):
            yield "a pod without a GPU asks for one"
        return
    if [each["name"] for each in containers(pod) if "nvidia.com/gpu" in each["resources"]["limits"]] != [
        "engine",
        "triton",
    ]:
        yield "a GPU is not given to what builds the plan and what serves it"
    if not any(each.get("key") == "nvidia.com/gpu" for each in pod.get("tolerations", [])):
        yield "nodes with GPUs repel the pod"
    terms = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    if "nvidia.com/gpu.product" not in json.dumps(terms):
        yield "the product is not chosen"


def shared_memory_is_large(documents: Documents) -> Iterator[str]:
    pod = pod_of(deployments(documents)["triton"])
    (triton,) = pod["containers"]
    names = [mount["name"] for mount in triton["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    memory = [
        each for each in pod["volumes"] if each["name"] in names and each.get("emptyDir", {}).get("medium") == "Memory"
    ]
    if not memory or "sizeLimit" not in memory[0]["emptyDir"]:
        yield "/dev/shm has the 64 MiB of a container"


# ---- who may what


def containers_are_hardened(documents: Documents) -> Iterator[str]:
    for component, pod in pods(documents):
        for container in containers(pod):
            given, where = container.get("securityContext", {}), f"{component}/{container['name']}"
            if given.get("runAsNonRoot") is not True or pod.get("securityContext", {}).get("runAsUser") != 1000:
                yield f"{where} may be root"
            if given.get("readOnlyRootFilesystem") is not True:
                yield f"{where} may write to its image"
            if given.get("capabilities") != {"drop": ["ALL"]} or given.get("allowPrivilegeEscalation") is not False:
                yield f"{where} has capabilities"
            if given.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield f"{where} may call every system call"
            if given.get("privileged") or any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
                yield f"{where} has its node's rights"


def no_pod_asks_kubernetes(documents: Documents) -> Iterator[str]:
    for component, pod in pods(documents):
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{component} has a token"


def nothing_is_mounted_from_a_node(documents: Documents) -> Iterator[str]:
    for component, pod in pods(documents):
        if any("hostPath" in volume for volume in pod["volumes"]):
            yield f"{component} has a folder of its node"


def callers_are_only_the_expected(documents: Documents) -> Iterator[str]:
    """Triton hears gateways on http and grpc, Prometheus on metrics, and asks nobody, or an object store over TLS."""
    policies = [each["spec"] for each in of(documents, "NetworkPolicy")]
    for component, deployment in deployments(documents).items():
        (policy,) = [each for each in policies if selects(each["podSelector"], deployment)] or [{}]
        if policy.get("policyTypes") != ["Ingress", "Egress"]:
            yield f"{component} is open"
            continue
        for rule in policy["ingress"]:
            yield from (f"{component}: {fault}" for fault in unexpected(rule, component, documents))
        if any(
            not rule.get("to") and not (component == "triton" and ports(rule) == {443}) for rule in policy["egress"]
        ):
            yield f"{component} may ask anybody"


def unexpected(rule: Document, component: str, documents: Documents) -> Iterator[str]:
    peers = rule.get("from", [])
    if ports(rule) == {"metrics"}:
        if not peers or not all(peer.get("namespaceSelector") and peer.get("podSelector") for peer in peers):
            yield "not only Prometheus may read the metrics"
    elif component == "triton" and ports(rule) == {"http", "grpc"}:
        gateway = deployments(documents)["gateway"]
        if not peers or not all(selects(peer.get("podSelector", {}), gateway) and len(peer) == 1 for peer in peers):
            yield "not only gateways may ask"
    elif ports(rule) != {"https"}:
        yield f"{sorted(map(str, ports(rule)))} are open"


def ports(rule: Document) -> set[object]:
    return {each["port"] for each in rule.get("ports", [])}


def secrets_are_only_named(documents: Documents) -> Iterator[str]:
    if of(documents, "Secret"):
        yield "a Secret is part of the release"
    for component, pod in pods(documents):
        for container in containers(pod):
            for variable in container.get("env", []):
                if re.search(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|Bearer", json.dumps(variable)):
                    yield f"{component}/{container['name']} has a secret in {variable['name']}"


def images_are_pinned(documents: Documents) -> Iterator[str]:
    for component, pod in pods(documents):
        for container in containers(pod):
            if not re.search(r":(?!latest$)[\w.-]+$|@sha256:", container["image"]):
                yield f"{component}/{container['name']} has any version"


# ---- what is served, and by how many


def the_repository_is_copied_once(documents: Documents) -> Iterator[str]:
    pod = pod_of(deployments(documents)["triton"])
    (triton,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    if pod["initContainers"][0]["name"] != "repository":
        yield "the models are not copied first"
    if "poll" in json.dumps(triton["args"]):
        yield "Triton polls"
    if any("emptyDir" not in volumes[mount["name"]] for mount in triton["volumeMounts"]):
        yield "Triton serves from where others may write"


def requests_are_balanced_over_pods(documents: Documents) -> Iterator[str]:
    """The name that the gateways resolve has the address of every ready pod, and none of a service."""
    gateway = pod_of(deployments(documents)["gateway"])["containers"][0]
    names = {each["value"].split(".")[0] for each in gateway["env"] if each["name"].startswith("TRITON_")}
    services = {each["metadata"]["name"]: each["spec"] for each in of(documents, "Service")}
    for name in names:
        spec = services.get(name, {})
        if spec.get("clusterIP") != "None" or not selects(
            {"matchLabels": spec.get("selector", {})}, deployments(documents)["triton"]
        ):
            yield "the gateways know a service's one address"
        if spec.get("publishNotReadyAddresses"):
            yield "the gateways know pods that are not ready"


def a_slow_pod_is_left(documents: Documents) -> Iterator[str]:
    """By nginx, which has given up on it; but not while it answers as late as both queues may make it."""
    gateway = pod_of(deployments(documents)["gateway"])["containers"][0]
    given = {each["name"]: each["value"] for each in gateway["env"]}
    if not 2 * MAX_WAIT_S < float(given.get("GATEWAY_TIMEOUT_S", 10)) < 10:
        yield "a pod that hangs is waited for, or one that queues is left"
    if given.get("GATEWAY_RETRIES", "on") != "on":
        yield "callers see every failure"


def pods_grow_fast_and_shrink_slowly(documents: Documents) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "HorizontalPodAutoscaler":
            yield from behaves(document["spec"].get("behavior", {}))
        elif document["kind"] == "ScaledObject":
            yield from behaves(
                document["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
            )
            if document["spec"]["triggers"][0]["metadata"].get("ignoreNullValues") != "false":
                yield "no figures end pods"
        else:
            continue
        if "replicas" in deployments(documents)["triton"]["spec"]:
            yield "every upgrade undoes what the autoscaler did"


def behaves(behavior: Document) -> Iterator[str]:
    up, down = behavior.get("scaleUp", {}), behavior.get("scaleDown", {})
    if up.get("stabilizationWindowSeconds") != 0 or down.get("stabilizationWindowSeconds", 0) < 300:
        yield "it waits before it grows, or not before it shrinks"
    speeds = [
        [policy["value"] / policy["periodSeconds"] for policy in each.get("policies", [])] or [100 / 15]
        for each in (up, down)
    ]
    if not max(speeds[0]) > 10 * max(speeds[1]):
        yield "it shrinks as fast as it grows"


POLICIES: tuple[Policy, ...] = (
    readiness_is_the_reference_answer,
    liveness_is_never_readiness,
    a_slow_start_is_awaited,
    the_end_is_in_order,
    a_new_version_comes_before_the_old_one_goes,
    a_drain_takes_one_pod_at_a_time,
    pods_are_spread,
    requests_are_limits,
    gpus_are_where_they_are_asked_for,
    shared_memory_is_large,
    containers_are_hardened,
    no_pod_asks_kubernetes,
    nothing_is_mounted_from_a_node,
    callers_are_only_the_expected,
    secrets_are_only_named,
    images_are_pinned,
    the_repository_is_copied_once,
    requests_are_balanced_over_pods,
    a_slow_pod_is_left,
    pods_grow_fast_and_shrink_slowly,
)
