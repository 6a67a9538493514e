"""The chart's documents keep every policy, and each policy finds every fault that it is there for."""

import copy
from collections.abc import Callable

import pytest
import yaml

from tests.kubernetes import policies
from tests.kubernetes.chart import FOLDER, INSTALLATIONS, Document, find, pod_of, rendered


def deployment(documents: list[Document], component: str = "triton") -> Document:
    return find(documents, "Deployment", component)["spec"]


def pod(documents: list[Document], component: str = "triton") -> Document:
    return pod_of(find(documents, "Deployment", component))


def container(documents: list[Document], component: str = "triton") -> Document:
    return pod(documents, component)["containers"][0]


def network(documents: list[Document], component: str = "triton") -> Document:
    return find(documents, "NetworkPolicy", component)["spec"]


def scaled(documents: list[Document]) -> Document:
    return find(documents, "ScaledObject")["spec"]


def behavior(documents: list[Document]) -> Document:
    return scaled(documents)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]


READY = {"httpGet": {"path": "/v2/health/ready", "port": "http"}}

# A policy, what it has to find, and the change to the documents that makes it so.
Change = Callable[[list[Document]], object]
FAULTS: tuple[tuple[policies.Policy, str, Change], ...] = (
    (
        policies.readiness_is_the_reference_answer,
        "readinessProbe does not ask",
        lambda all_of: container(all_of).update(readinessProbe={**READY, "timeoutSeconds": 30}),
    ),
    (
        policies.readiness_is_the_reference_answer,
        "readinessProbe cuts",
        lambda all_of: container(all_of)["readinessProbe"].update(timeoutSeconds=5),
    ),
    (
        policies.liveness_is_never_readiness,
        "liveness asks",
        lambda all_of: container(all_of)["livenessProbe"].update(READY),
    ),
    (
        policies.liveness_is_never_readiness,
        "liveness asks",
        lambda all_of: container(all_of).update(livenessProbe=container(all_of)["readinessProbe"]),
    ),
    (
        policies.liveness_is_never_readiness,
        "liveness has less",
        lambda all_of: container(all_of)["livenessProbe"].update(failureThreshold=1),
    ),
    (policies.a_slow_start_is_awaited, "triton has too little", lambda all_of: container(all_of).pop("startupProbe")),
    (
        policies.a_slow_start_is_awaited,
        "gateway has too little",
        lambda all_of: container(all_of, "gateway")["startupProbe"].update(failureThreshold=3),
    ),
    (policies.the_end_is_in_order, "triton ends while", lambda all_of: container(all_of).pop("lifecycle")),
    (
        policies.the_end_is_in_order,
        "gateway ends while",
        lambda all_of: container(all_of, "gateway")["lifecycle"]["preStop"]["sleep"].update(seconds=1),
    ),
    (policies.the_end_is_in_order, "triton is killed", lambda all_of: pod(all_of).pop("terminationGracePeriodSeconds")),
    (
        policies.the_end_is_in_order,
        "triton is killed",
        lambda all_of: container(all_of)["lifecycle"]["preStop"]["sleep"].update(seconds=70),
    ),
    (
        policies.a_new_version_comes_before_the_old_one_goes,
        "gateway has fewer",
        lambda all_of: deployment(all_of, "gateway").pop("strategy"),
    ),
    (
        policies.a_new_version_comes_before_the_old_one_goes,
        "a rollout goes on",
        lambda all_of: deployment(all_of).update(minReadySeconds=0),
    ),
    (
        policies.a_drain_takes_one_pod_at_a_time,
        "triton has no budget",
        lambda all_of: find(all_of, "PodDisruptionBudget", "triton")["spec"]["selector"]["matchLabels"].update(a="b"),
    ),
    (
        policies.a_drain_takes_one_pod_at_a_time,
        "gateway has no budget",
        lambda all_of: all_of.remove(find(all_of, "PodDisruptionBudget", "gateway")),
    ),
    (policies.pods_are_spread, "triton is not spread", lambda all_of: pod(all_of)["topologySpreadConstraints"].pop()),
    (
        policies.requests_are_limits,
        "gateway/gateway has no",
        lambda all_of: container(all_of, "gateway").pop("resources"),
    ),
    (
        policies.requests_are_limits,
        "triton/triton has no",
        lambda all_of: container(all_of)["resources"]["requests"].update(cpu=1),
    ),
    (
        policies.gpus_are_where_they_are_asked_for,
        "a GPU is not",
        lambda all_of: container(all_of)["resources"]["limits"].pop("nvidia.com/gpu"),
    ),
    (policies.gpus_are_where_they_are_asked_for, "nodes with GPUs", lambda all_of: pod(all_of).pop("tolerations")),
    (policies.gpus_are_where_they_are_asked_for, "the product", lambda all_of: pod(all_of).pop("affinity")),
    (
        policies.gpus_are_where_they_are_asked_for,
        "a pod without",
        lambda all_of: container(all_of).update(args=["--variant", "cpu"]),
    ),
    (
        policies.shared_memory_is_large,
        "/dev/shm has",
        lambda all_of: next(each for each in pod(all_of)["volumes"] if each["name"] == "dshm").update(emptyDir={}),
    ),
    (
        policies.containers_are_hardened,
        "triton/repository may be root",
        lambda all_of: pod(all_of)["initContainers"][0]["securityContext"].pop("runAsNonRoot"),
    ),
    (
        policies.containers_are_hardened,
        "triton/repository may be root",
        lambda all_of: pod(all_of)["securityContext"].update(runAsUser=0),
    ),
    (
        policies.containers_are_hardened,
        "gateway/gateway may write",
        lambda all_of: container(all_of, "gateway")["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    (
        policies.containers_are_hardened,
        "triton/triton has capabilities",
        lambda all_of: container(all_of)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
    ),
    (
        policies.containers_are_hardened,
        "triton/triton has capabilities",
        lambda all_of: container(all_of)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    (
        policies.containers_are_hardened,
        "triton/triton may call",
        lambda all_of: container(all_of)["securityContext"].pop("seccompProfile"),
    ),
    (
        policies.containers_are_hardened,
        "triton/repository has its node",
        lambda all_of: pod(all_of).update(hostNetwork=True),
    ),
    (
        policies.no_pod_asks_kubernetes,
        "gateway has a token",
        lambda all_of: pod(all_of, "gateway").pop("automountServiceAccountToken"),
    ),
    (
        policies.nothing_is_mounted_from_a_node,
        "triton has a folder",
        lambda all_of: pod(all_of)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    ),
    (
        policies.callers_are_only_the_expected,
        "triton is open",
        lambda all_of: all_of.remove(find(all_of, "NetworkPolicy", "triton")),
    ),
    (
        policies.callers_are_only_the_expected,
        "gateway is open",
        lambda all_of: network(all_of, "gateway").update(policyTypes=["Ingress"]),
    ),
    (
        policies.callers_are_only_the_expected,
        "triton: not only gateways",
        lambda all_of: network(all_of)["ingress"][0].pop("from"),
    ),
    (
        policies.callers_are_only_the_expected,
        "triton: not only gateways",
        lambda all_of: network(all_of)["ingress"][0]["from"].append({"podSelector": {}}),
    ),
    (
        policies.callers_are_only_the_expected,
        "triton: not only Prometheus",
        lambda all_of: network(all_of)["ingress"][1]["from"][0].pop("podSelector"),
    ),
    (
        policies.callers_are_only_the_expected,
        "triton: [] are open",
        lambda all_of: network(all_of)["ingress"].append({}),
    ),
    (
        policies.callers_are_only_the_expected,
        "gateway: not only Prometheus",
        lambda all_of: network(all_of, "gateway")["ingress"][1].pop("from"),
    ),
    (policies.callers_are_only_the_expected, "triton may ask", lambda all_of: network(all_of)["egress"].append({})),
    (
        policies.callers_are_only_the_expected,
        "gateway may ask",
        lambda all_of: network(all_of, "gateway")["egress"].append({}),
    ),
    (
        policies.secrets_are_only_named,
        "a Secret is",
        lambda all_of: all_of.append({"kind": "Secret", "metadata": {"name": "keys"}}),
    ),
    (
        policies.secrets_are_only_named,
        "gateway/gateway has a secret",
        lambda all_of: container(all_of, "gateway")["env"].append({"name": "PASSWORD", "value": "open"}),
    ),
    (
        policies.images_are_pinned,
        "triton/triton has any",
        lambda all_of: container(all_of).update(image="serve:latest"),
    ),
    (
        policies.images_are_pinned,
        "gateway/gateway has any",
        lambda all_of: container(all_of, "gateway").update(image="registry:5000/gateway"),
    ),
    (
        policies.the_repository_is_copied_once,
        "the models are not",
        lambda all_of: pod(all_of)["initContainers"].reverse(),
    ),
    (
        policies.the_repository_is_copied_once,
        "Triton polls",
        lambda all_of: container(all_of)["args"].append("--model-control-mode=poll"),
    ),
    (
        policies.the_repository_is_copied_once,
        "Triton serves from",
        lambda all_of: container(all_of)["volumeMounts"].append({"name": "source", "mountPath": "/models"}),
    ),
    (
        policies.requests_are_balanced_over_pods,
        "the gateways know a service",
        lambda all_of: find(all_of, "Service", "triton")["spec"].pop("clusterIP"),
    ),
    (
        policies.requests_are_balanced_over_pods,
        "the gateways know a service",
        lambda all_of: find(all_of, "Service", "triton")["metadata"].update(name="another"),
    ),
    (
        policies.requests_are_balanced_over_pods,
        "the gateways know pods",
        lambda all_of: find(all_of, "Service", "triton")["spec"].update(publishNotReadyAddresses=True),
    ),
    (
        policies.a_slow_pod_is_left,
        "a pod that hangs",
        lambda all_of: container(all_of, "gateway").update(env=[]),
    ),
    (
        policies.a_slow_pod_is_left,
        "callers see",
        lambda all_of: container(all_of, "gateway")["env"].append({"name": "GATEWAY_RETRIES", "value": "off"}),
    ),
    (policies.pods_grow_fast_and_shrink_slowly, "it waits", lambda all_of: behavior(all_of).pop("scaleDown")),
    (
        policies.pods_grow_fast_and_shrink_slowly,
        "it waits",
        lambda all_of: behavior(all_of)["scaleUp"].update(stabilizationWindowSeconds=300),
    ),
    (
        policies.pods_grow_fast_and_shrink_slowly,
        "it shrinks",
        lambda all_of: behavior(all_of)["scaleDown"].pop("policies"),
    ),
    (
        policies.pods_grow_fast_and_shrink_slowly,
        "no figures",
        lambda all_of: scaled(all_of)["triggers"][0]["metadata"].pop("ignoreNullValues"),
    ),
    (policies.pods_grow_fast_and_shrink_slowly, "every upgrade", lambda all_of: deployment(all_of).update(replicas=2)),
)


@pytest.mark.parametrize("policy", policies.POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_the_chart_keeps(policy: policies.Policy, installation: str) -> None:
    assert list(policy(rendered(installation))) == []


@pytest.mark.parametrize(
    ("policy", "finding", "change"), FAULTS, ids=[f"{each.__name__}: {words}" for each, words, _ in FAULTS]
)
def test_a_fault_is_found(policy: policies.Policy, finding: str, change: Change) -> None:
    documents = copy.deepcopy(list(rendered("gpu keda")))
    change(documents)
    found = list(policy(documents))
    assert any(each.startswith(finding) for each in found), found


def test_every_policy_has_a_fault() -> None:
    assert {policy for policy, _, _ in FAULTS} == set(policies.POLICIES)


KSERVE_KEEPS = (
    policies.readiness_is_the_reference_answer,
    policies.liveness_is_never_readiness,
    policies.a_slow_start_is_awaited,
    policies.the_end_is_in_order,
    policies.requests_are_limits,
    policies.shared_memory_is_large,
    policies.containers_are_hardened,
    policies.no_pod_asks_kubernetes,
    policies.nothing_is_mounted_from_a_node,
    policies.secrets_are_only_named,
    policies.images_are_pinned,
)


@pytest.mark.parametrize("policy", KSERVE_KEEPS, ids=lambda policy: policy.__name__)
def test_the_inference_service_keeps(policy: policies.Policy) -> None:
    """Its predictor is a pod as that of a Deployment."""
    predictor = yaml.safe_load((FOLDER / "kserve.yaml").read_text())["spec"]["predictor"]
    labels = {"app.kubernetes.io/component": "triton"}
    spec = {"template": {"metadata": {"labels": labels}, "spec": predictor}}
    assert list(policy([{"kind": "Deployment", "metadata": {"labels": labels}, "spec": spec}])) == []
