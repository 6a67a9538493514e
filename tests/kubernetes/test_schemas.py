"""Every document is one that Kubernetes and the operators beside it take: by their own schemas, strictly."""

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.kubernetes.chart import FOLDER, INSTALLATIONS, Document, find, rendered
from tests.kubernetes.kserve_models import problems

NEWEST = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]
OPERATORS = ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject")
# Documents of an installation.
COUNTS = {"cpu": 9, "gpu": 13, "cpu keda": 14, "gpu keda": 14, "gpu prometheus-adapter": 14}


@cache
def operators_model(kind: str) -> Any:
    """The resource of an operator as its definition has it, without what it does not know."""
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

    return {each.__name__: each for each in (ServiceMonitor, PodMonitor, PrometheusRule, ScaledObject)}[kind]


def known_to_its_operator(document: Document) -> Document:
    """The document without fields that its operator does not know; ValidationError where one is wrong."""
    model = operators_model(document["kind"]).model_validate(document)
    return json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))


@pytest.mark.parametrize("installation", INSTALLATIONS)
@pytest.mark.parametrize("version", NEWEST)
def test_kubernetes_takes_every_document(installation: str, version: str) -> None:
    for document in rendered(installation):
        if document["kind"] not in OPERATORS:
            validate_once(json.dumps(document), version)


@cache
def validate_once(document: str, version: str) -> None:
    """Most documents are the same in several installations, and each validation reads a megabyte of schemas."""
    kubernetes_validate.validate(json.loads(document), version, strict=True)


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_operators_know_every_field(installation: str) -> None:
    for document in rendered(installation):
        if document["kind"] in OPERATORS:
            assert known_to_its_operator(document) == document


@pytest.mark.parametrize(("installation", "count"), COUNTS.items())
def test_nothing_is_left_out(installation: str, count: int) -> None:
    documents = rendered(installation)
    names = {(each["kind"], each["metadata"]["name"]) for each in documents}
    assert len(names) == len(documents) == count


def misspell(document: Document) -> None:
    document["spec"]["replica"] = 3


def mistype(document: Document) -> None:
    document["spec"]["revisionHistoryLimit"] = "five"


@pytest.mark.parametrize("change", [misspell, mistype])
@pytest.mark.parametrize("version", NEWEST)
def test_kubernetes_refuses(change: Callable[[Document], None], version: str) -> None:
    document = copy.deepcopy(find(rendered("cpu"), "Deployment", "triton"))
    change(document)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_field_that_an_operator_does_not_know_is_seen(kind: str) -> None:
    document = copy.deepcopy(find(rendered("cpu keda"), kind))
    document["spec"]["replica"] = 3
    assert known_to_its_operator(document) != document


# ---- KServe

SERVICE = yaml.safe_load((FOLDER / "kserve.yaml").read_text())


def test_kserve_knows_every_field() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert problems(SERVICE, "V1beta1InferenceService", "") == []


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("minReplica", 1, ".spec.predictor.minReplica: unknown"),
        ("maxReplicas", "ten", ".spec.predictor.maxReplicas: 'ten' is no int"),
        ("containers", {}, ".spec.predictor.containers: no list"),
        ("volumes", [{"nam": "tmp"}], ".spec.predictor.volumes[0]: 'name' is a required property"),
        ("securityContext", {"runAsUser": "me"}, ".spec.predictor.securityContext: 'me' is not of type"),
    ],
)
def test_kserve_refuses(name: str, value: object, problem: str) -> None:
    service = copy.deepcopy(SERVICE)
    service["spec"]["predictor"][name] = value
    assert any(each.startswith(problem) for each in problems(service, "V1beta1InferenceService", ""))
