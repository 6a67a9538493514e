"""KServe's own description of its resources, read from its Python package without importing it: that needs 30 others.

Each model of the package is a class with `openapi_types`, its fields' types, and `attribute_map`, their names in YAML.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents

from tests.tools import KSERVE

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "ResourceQuantity": (str, int)}
KUBERNETES = "v1.37.0-local-strict"


def problems(value: Any, kind: str, where: str) -> list[str]:
    """What a value of a type has that the type does not, or of another type."""
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [each for index, item in enumerate(value) for each in problems(item, found[1], f"{where}[{index}]")]
    if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return [each for name, item in value.items() for each in problems(item, found[1], f"{where}.{name}")]
    if kind in PLAIN:
        fits = isinstance(value, PLAIN[kind]) and not (isinstance(value, bool) and PLAIN[kind] is int)
        return [] if fits else [f"{where}: {value!r} is no {kind}"]
    fields = model(kind)
    if fields is None:
        return kubernetes_problems(value, kind, where)
    unknown = [f"{where}.{name}: unknown" for name in value if name not in fields]
    return unknown + [
        each for name in value if name in fields for each in problems(value[name], fields[name], f"{where}.{name}")
    ]


@cache
def models() -> dict[str, Path]:
    """The file of each class of KServe's."""
    if not KSERVE.exists():
        raise RuntimeError(f"no {KSERVE}: run `make test`, which fetches what the tests need")
    found = {}
    for path in (KSERVE / "kserve/models").glob("v1*.py"):
        if match := re.search(r"^class (\w+)\(object\):", path.read_text(), re.MULTILINE):
            found[match[1]] = path
    return found


@cache
def model(name: str) -> dict[str, str] | None:
    """The types of a class by their names in YAML; None for one of Kubernetes' own."""
    if name not in models():
        return None
    maps = {}
    for node in ast.walk(ast.parse(models()[name].read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict):
            maps[node.targets[0].id] = ast.literal_eval(node.value)
    return {maps["attribute_map"][field]: kind for field, kind in maps["openapi_types"].items()}


@cache
def definitions() -> dict[str, Any]:
    return schema_contents(f"kubernetes-json-schema/{KUBERNETES}/_definitions.json", "1.37")


def kubernetes_problems(value: Any, kind: str, where: str) -> list[str]:
    """By Kubernetes' strict schema of a type such as V1Container."""
    name = kind.removeprefix("V1")
    (key,) = [each for each in definitions()["$defs"] if re.fullmatch(rf"(.*\.v1\.)?{name}", each)]
    validator = Draft202012Validator({**definitions(), "$ref": f"#/$defs/{key}"})
    return [f"{where}: {error.message}" for error in validator.iter_errors(value)]
