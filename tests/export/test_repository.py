"""The built repository can be read at every moment, whatever ends a publication."""

import os
import signal
from pathlib import Path

import onnx
import pytest

from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.publish import smoke_test
from alexnet_triton.export.repository import (
    Network,
    Publication,
    remove_version,
    served_version,
    set_served_version,
    versions,
    write_version,
)
from alexnet_triton.serving.repository import Repository
from alexnet_triton.serving.server import Server
from tests.serving.tiny import answer, jpeg, network

LABELS = tuple(f"class {number}" for number in range(10))


def publication(folder: Path, seed: int, name: str = "alexnet", classes: int = 10, size: int = 227) -> Publication:
    """The tests' small network, whose seed decides what it answers."""
    model, image = network(seed), jpeg(seed=7)
    path = folder / f"{seed}.onnx"
    onnx.save(model, path)
    probabilities = answer(model, image)
    index = int(probabilities.argmax())
    known = {"index": index, "label": LABELS[index], "probability": float(probabilities[index])}
    manifest = {"precisions": {"fp32": {}}}
    return Publication(Network(name, classes, size), LABELS[:classes], {"model.onnx": path}, image, known, manifest)


def publish(repository: Path, what: Publication) -> int:
    version = write_version(repository, what)
    set_served_version(repository, version)
    return version


def killed_at(step: int, repository: Path, what: Publication) -> bool:
    """Publish in a process that is killed before its `step`th renaming; False when it ended before that."""
    child = os.fork()
    if child == 0:
        renames = iter(range(step))
        replace = Path.replace

        def replace_or_die(self: Path, target: Path) -> Path:
            if next(renames, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = replace_or_die  # type: ignore[method-assign]
        publish(repository, what)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def assert_served(repository: Path, allowed: set[int]) -> None:
    """Every configuration parses, and each version that it names is whole."""
    opened = Repository.open(repository, "cpu")
    for name, config in opened.configs.items():
        for version in config.version_policy.specific.versions:
            folder = repository / name / str(version)
            expected = {"classify": "known.json", "preprocess": "model.py"}.get(name, "model.onnx")
            assert (folder / expected).is_file()
    assert served_version(repository) in allowed
    opened.reference_answer(str(served_version(repository)))


def test_killed_at_any_renaming_the_version_before_or_the_new_one_is_served(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    step, killed = 0, True
    while killed:
        before = served_version(repository)
        killed = killed_at(step, repository, publication(tmp_path, 1))
        assert_served(repository, {before, versions(repository)[-1]})
        step += 1
    assert step >= 9  # the renamings of one publication, and the run that none of them ended
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        server.check()


def test_killed_in_the_first_publication_it_can_be_repeated(tmp_path: Path) -> None:
    for step in range(12):
        repository = tmp_path / str(step)
        killed_at(step, repository, publication(tmp_path, 0))
        publish(repository, publication(tmp_path, 0))
        assert_served(repository, set(versions(repository)))


def test_networks_of_several_sizes_stand_side_by_side(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    publish(repository, publication(tmp_path, 0, name="other", size=224))
    assert {entry.name for entry in repository.iterdir()} == {
        *("preprocess", "preprocess_224", "alexnet", "other", "classify")
    }
    steps = Repository.open(repository, "cpu").configs["classify"].ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [("preprocess_224", -1), ("other", 2)]


def test_graphs_and_warm_up_have_the_published_sizes(tmp_path: Path) -> None:
    publish(tmp_path / "built", publication(tmp_path, seed=0, size=224))
    config = Repository.open(tmp_path / "built", "gpu").configs["alexnet"]
    assert {tuple(graph.input["images"].dim) for graph in config.optimization.cuda.graph_spec} == {(224, 224, 3)}
    assert {tuple(sample.inputs["images"].dims) for sample in config.model_warmup} == {(224, 224, 3)}


def test_other_sizes_under_the_same_name_are_refused(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    with pytest.raises(PublishError, match="10 classes at 227 pixels, this one 9 at 227; publish it under another"):
        write_version(repository, publication(tmp_path, 0, classes=9))
    assert versions(repository) == [1]


def test_a_withdrawn_version_leaves_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    version = write_version(repository, publication(tmp_path, 1))
    remove_version(repository, version)
    assert_served(repository, {1})
    assert versions(repository) == [1]
    assert not list(repository.glob(f"*/{version}"))


def test_a_full_disk_is_one_line_and_nothing_changes(tmp_path: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    repository = tmp_path / "built"
    what = publication(tmp_path, 0)
    publish(repository, what)
    before = sorted(path for path in repository.rglob("*"))
    (repository / "alexnet" / "2").symlink_to("/dev/full/nowhere")
    (repository / "alexnet").chmod(0o755)
    broken = Publication(what.network, LABELS, {"model.onnx": Path("/dev/full/absent")}, b"", {}, what.manifest)
    with pytest.raises(PublishError, match="cannot be written") as refusal:
        write_version(repository, broken)
    assert "\n" not in str(refusal.value)
    (repository / "alexnet" / "2").unlink()
    assert sorted(path for path in repository.rglob("*")) == before


@pytest.mark.parametrize("damage", ["truncated model", "wrong reference answer"])
def test_a_version_is_rehearsed_before_it_is_served(tmp_path: Path, damage: str) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    what = publication(tmp_path, 1)
    if damage == "truncated model":
        what.artefacts["model.onnx"].write_bytes(what.artefacts["model.onnx"].read_bytes()[:50])
    else:
        what.reference_answer["index"] = (what.reference_answer["index"] + 1) % 10
    version = write_version(repository, what)
    with pytest.raises(PublishError, match=r"does not run|for its reference image"):
        smoke_test(repository, version)
