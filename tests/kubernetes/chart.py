"""The chart, rendered by Helm with values of `kubernetes/values/`."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kubernetes"
CHART = FOLDER / "chart"
RELEASE, NAMESPACE = "alexnet", "vision"
# What the README has its reader install: files of values, of which each goes before those to its left.
INSTALLATIONS = ("cpu", "gpu", "cpu keda", "gpu keda", "gpu prometheus-adapter", "cpu object-store", "gpu object-store")
Document = dict[str, Any]


def values(installation: str) -> Document:
    """The files' values, laid over each other as `helm --values` does."""
    merged: Document = {}
    for name in installation.split():
        merged = lay_over(merged, yaml.safe_load((FOLDER / f"values/{name}.yaml").read_text()))
    return merged


def lay_over(below: Document, above: Document) -> Document:
    both = {name: lay_over(below[name], above[name]) for name in below.keys() & above.keys() if is_map(above[name])}
    return {**below, **above, **both}


def is_map(value: object) -> bool:
    return isinstance(value, dict)


def with_value(given: Document, name: str, value: object) -> Document:
    """The values with one more, named as `helm --set` does: gateway.service.port."""
    for key in reversed(name.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return lay_over(given, value)


def render(given: Document) -> list[Document]:
    """Raises HelmValuesError or HelmRenderError."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(given, name=RELEASE, namespace=NAMESPACE)
    texts = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    # libyaml's loader makes the same of them as the one in Python, in a tenth of the time.
    return [document for text in texts for document in yaml.load_all(text, yaml.CSafeLoader) if document]


@cache
def rendered(installation: str) -> tuple[Document, ...]:
    """Not to be changed: `copy.deepcopy` it."""
    return tuple(render(values(installation)))


def find(documents: "list[Document] | tuple[Document, ...]", kind: str, component: str = "") -> Document:
    """The one document of a kind whose name ends with the component's."""
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"].endswith(component)]
    return found


def pods(documents: "list[Document] | tuple[Document, ...]") -> Iterator[tuple[str, Document]]:
    """Component and specification of each kind of pod."""
    for document in documents:
        if document["kind"] == "Deployment":
            yield document["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"], pod_of(document)


def pod_of(deployment: Document) -> Document:
    return deployment["spec"]["template"]["spec"]


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]
