"""One thing has one name, and the map holds: how many modules there are, and what imports what."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from main_job import ROOT

ROOMS = (
    "bulk",
    "client",
    "common",
    "docker",
    "docs",
    "export",
    "imaging",
    "kubernetes",
    "loadtest",
    "model_repository",
)
ROOMS += ("model_repository", "serving", "tests", "training")
SUFFIXES = {".py", ".md", ".sh", ".js", ".html", ".css", ".j2", ".in", ".pbtxt", ".yml", ".yaml", ".toml", ".tpl"}
SUFFIXES |= {".lua"}
MODULES, CLIENT_MODULES, CLIENT_LEVELS = 135, 22, 10  # at most

# A pattern that no text of the project matches -> what it says instead.
WORDS = {
    r"\b(is|be|are|was|stays|becomes)[ _](well|ill)(?=[.,;:)\"']|$| and\b| again\b)|\bis_well\b": "healthy, unhealthy",
    r"\b[Kk]nown[ _-]?([Ii]mage|[Aa]nswer)s?\b": "reference image, reference answer",
    r"\b[Kk]eepers?\b|\bKept(Process|Server)\b|\bkept_(process|server)\b": "supervisor, supervised",
    r"\btaken[ _]up\b|\btakes? up again\b": "resumed",
    r"\b[Rr]ehears\w*": "smoke_test",
    r"\b[Ww]ithdr[ae]w\w*": "remove_version",
    r"\bdef switch\b|\b(repository|live|control)\.switch\(": "set_served_version",
    r"\bWish\b": "StopRequest",
    r"\bclass Cut\b|\bCut\(": "Crop",
    r"\bpart: float\b|--part\b|\bpart=(0?\.|options)": "fraction",
    r"\bclass Sums\b|\bSums\(": "RunningMetrics",
    r"\bclass Way\b|\bWay\(": "Variant",
    r"\bclass Held\b|\bHeld\(": "CompletedResults",
    r"\bclass Sink\b|\bSink\(": "ResultWriter",
    r"\bclass Named\b|\bNamed\(": "LazyImage",
    r"\bPortal\b": "ThreadedSession",
    r"\bDeck\b|\.deal\(": "RequestSampler.next",
    r"\bclass Alarm\b|\bAlarm\(": "PreciseTimer",
    r"\bclass Fault\b|\bFault\(": "RequestFault",
    r"\bnative\.pbtxt\b|--variant native\b|[\"']native[\"']": "onnxruntime",
    r"--no-normalization\b|\bno_normalization\b": "--no-lrn",
    r"--scale(?= \d| R,G,B|\")": "--std, the divisor",
    r"--shm\b": "nothing: shared memory between client and server is closed",
    r"\bbench[./](alone|callers)\b|\bimport (alone|callers)\b|--callers\b": "baselines, checked_clients",
    r"\bpython3? -m (training|export|serving|loadtest|bench|client|imaging)\b": "alexnet-triton COMMAND",
    r"# WAS\b": "nothing: the docstring says what a module is for",
}


@cache
def texts() -> dict[Path, str]:
    """The project's own texts: code, settings and documents, but for this table. Read once for all patterns."""
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*")] + list(ROOT.glob("*"))
    return {
        path: path.read_text(encoding="utf-8")
        for path in sorted(found)
        if (path.suffix in SUFFIXES or path.name in ("Makefile", "Dockerfile"))
        and path.is_file()
        and path != Path(__file__).resolve()
    }


@pytest.mark.parametrize("pattern", WORDS)
def test_one_thing_has_one_name(pattern: str) -> None:
    refused = re.compile(pattern, re.MULTILINE)
    hits = []
    for path, text in texts().items():
        for found in refused.finditer(text):
            number = text.count("\n", 0, found.start()) + 1
            hits.append(f"{path.relative_to(ROOT)}:{number}: {found[0]}")
    assert hits == [], f"say: {WORDS[pattern]}"


# ---- the map


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name; a package is its __init__. Triton's models are files of a repository."""
    rooms = [room for room in ROOMS if room not in ("tests", "docs", "model_repository")]
    paths = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    return {_name(path): path for path in paths}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("alexnet_triton", *(part for part in parts if part != "__init__")))


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package, wherever in the file, the names in `import a, b` included."""
    return {name: _imports(name, path) for name, path in modules().items()}


def _imports(name: str, path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module for module in whole if module in modules()} or {node.module}
    return (found & modules().keys()) - {name}


def reachable(start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in imports()[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def levels(room: str) -> int:
    """The longest chain of modules of a room, each of which imports the next."""

    @cache
    def below(name: str) -> int:
        return 1 + max((below(target) for target in imports()[name] if target.startswith(f"{room}.")), default=0)

    return max(below(name) for name in modules() if name.startswith(f"{room}."))


def of(room: str) -> list[str]:
    return [name for name in modules() if name == room or name.startswith(f"{room}.")]


def test_a_person_can_hold_the_modules_in_the_head() -> None:
    assert len(modules()) <= MODULES
    assert len(of("alexnet_triton.client")) <= CLIENT_MODULES


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert [name for name in modules() if name in reachable(name)] == []


def test_the_client_has_few_levels() -> None:
    assert levels("alexnet_triton.client") <= CLIENT_LEVELS


@pytest.mark.parametrize("room", ["client", "serving", "training"])
def test_rooms_in_the_middle_import_none_of_each_other(room: str) -> None:
    others = {"bulk", "client", "serving", "training", "export", "loadtest"} - {room}
    for name in of(f"alexnet_triton.{room}"):
        assert [each for each in imports()[name] if each.split(".")[1] in others] == [], name


def test_common_imports_only_the_standard_library() -> None:
    for name in of("alexnet_triton.common"):
        assert all(each.startswith("alexnet_triton.common") for each in imports()[name]), name
