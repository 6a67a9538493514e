"""The built repository can be read at every moment, whatever ends a publication."""

import json
import os
import resource
import shutil
import signal
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from alexnet_triton.common.files import WriteError
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.publish import smoke_test
from alexnet_triton.export.repository import (
    Publication,
    add_again,
    remove_version,
    set_served_version,
    stage,
    versions,
)
from alexnet_triton.serving.repository import PARKED, Repository, served_version, settle_versions
from tests.serving.tiny import publication, publish, running_server, write_version


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
            expected = {"classify": "reference.json", "preprocess": "model.py"}.get(name, "model.onnx")
            assert (folder / expected).is_file()
    served = served_version(repository)
    assert served in allowed
    assert served == 1 or (repository / "alexnet" / str(served) / "model.onnx").is_file()  # the first may be unfinished
    opened.reference_answers(str(served))


def test_killed_at_any_renaming_the_version_before_or_the_new_one_is_served(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    step, killed = 0, True
    while killed:
        before = served_version(repository)
        killed = killed_at(step, repository, publication(tmp_path, 1))
        assert_served(repository, {before, versions(repository)[-1]})
        step += 1
    assert step >= 8  # the renamings of one publication, and the run that none of them ended
    with running_server(repository) as server:
        server.check()


def test_killed_in_the_first_publication_it_can_be_repeated(tmp_path: Path) -> None:
    for step in range(12):
        repository = tmp_path / str(step)
        killed_at(step, repository, publication(tmp_path, 0))
        publish(repository, publication(tmp_path, 0))
        assert_served(repository, set(versions(repository)))


@pytest.mark.parametrize("linked", [True, False])
def test_a_version_that_is_added_again_has_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def without_links(source: str, target: str) -> None:
        raise OSError("Operation not permitted")

    if not linked:
        monkeypatch.setattr(os, "link", without_links)
    repository = tmp_path / "built"
    for seed in (0, 1):
        publish(repository, publication(tmp_path, seed))
    assert add_again(repository, 1) == 3
    for folder, name in ((repository / PARKED / "alexnet", "model.onnx"), (repository / "classify", "reference.json")):
        first, again = (folder / version / name for version in ("1", "3"))
        assert first.read_bytes() == again.read_bytes()
        assert first.samefile(again) == linked
    manifests = [
        json.loads((repository / "classify" / str(n) / "manifest.json").read_text()) for n in versions(repository)
    ]
    assert [manifest.get("again") for manifest in manifests] == [None, None, 1]
    set_served_version(repository, 3)
    settle_versions(repository)
    assert add_again(repository, 1) == 4
    assert not list(repository.glob(".staging*"))


def test_networks_of_several_sizes_stand_side_by_side(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    publish(repository, publication(tmp_path, 0, name="other", size=224))
    assert {entry.name for entry in repository.iterdir()} == {
        *("preprocess", "preprocess_224", "alexnet", "other", "classify", ".previous")
    }
    assert set(Repository.open(repository, "cpu").configs) == {"preprocess", "preprocess_224", "other", "classify"}
    steps = Repository.open(repository, "cpu").configs["classify"].ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [("preprocess_224", -1), ("other", 2)]


@pytest.mark.parametrize(
    ("variant", "backends"),
    [
        ("gpu", {"alexnet": "tensorrt_plan", "classify": "ensemble", "preprocess": "python"}),
        ("cpu", {"alexnet": "python", "classify": "ensemble", "preprocess": "python"}),
        ("onnxruntime", {"alexnet": "onnxruntime", "classify": "ensemble", "preprocess": "python"}),
    ],
)
def test_every_variant_is_published(tmp_path: Path, variant: str, backends: dict[str, str]) -> None:
    publish(tmp_path / "built", publication(tmp_path))
    configs = Repository.open(tmp_path / "built", variant).configs
    assert {name: config.backend or config.platform for name, config in configs.items()} == backends


@pytest.mark.parametrize(("largest", "graphs"), [(32, [1, 2, 4, 8, 12, 16, 24, 32]), (10, [1, 2, 4, 8, 10]), (1, [1])])
def test_on_a_gpu_every_batch_size_has_a_graph_and_is_warmed_up(
    tmp_path: Path, largest: int, graphs: list[int]
) -> None:
    what = publication(tmp_path, name="other", size=64)
    publish(tmp_path / "built", replace(what, network=replace(what.network, max_batch_size=largest)))
    config = Repository.open(tmp_path / "built", "gpu").configs["other"]
    specs = config.optimization.cuda.graph_spec
    assert config.max_batch_size == largest
    assert [spec.batch_size for spec in specs] == [sample.batch_size for sample in config.model_warmup] == graphs
    covered = [range(spec.graph_lower_bound.batch_size or spec.batch_size, spec.batch_size + 1) for spec in specs]
    assert list(chain(*covered)) == list(range(1, largest + 1))
    assert {tuple(spec.input["images"].dim) for spec in specs} == {(64, 64, 3)}
    assert {tuple(sample.inputs["images"].dims) for sample in config.model_warmup} == {(64, 64, 3)}


def test_what_the_next_version_does_not_change_is_left_untouched(tmp_path: Path) -> None:
    """Triton reloads a model, and all its versions, when its files are newer."""
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    before = _written(repository / "alexnet", repository / "preprocess")
    set_served_version(repository, write_version(repository, publication(tmp_path, 1)))
    assert before.items() <= _written(repository / "alexnet", repository / "preprocess").items()


def _written(*models: Path) -> dict[Path, tuple[int, int]]:
    """Every file of these models, its inode and the time of its last change."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for model in models for path in model.rglob("*.*")}


def test_a_configuration_that_an_older_publication_left_does_not_pin_its_version(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    classify = repository / "classify"
    (classify / "configs").mkdir()
    shutil.copy(classify / "config.pbtxt", classify / "configs" / "cpu.pbtxt")
    publish(repository, publication(tmp_path, 1))
    assert list(Repository.open(repository, "cpu").configs["classify"].version_policy.specific.versions) == [2]


def test_other_sizes_under_the_same_name_are_refused(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    with pytest.raises(PublishError, match="10 classes at 227 pixels, this one 9 at 227; publish it under another"):
        write_version(repository, publication(tmp_path, 0, classes=9))
    assert versions(repository) == [1]


def test_a_removed_version_leaves_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    version = write_version(repository, publication(tmp_path, 1))
    remove_version(repository, version)
    assert_served(repository, {1})
    assert versions(repository) == [1]
    assert not list(repository.glob(f"*/{version}"))


def test_a_full_disk_is_one_line_and_nothing_changes(tmp_path: Path) -> None:
    """A limit on the size of files refuses the network half-way, as a full disk does."""
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    before = sorted(repository.rglob("*"))
    what = publication(tmp_path, 1)
    what.artefacts["model.onnx"].write_bytes(bytes(200_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"built: cannot be written \(file too large\)") as refusal:
            write_version(repository, what)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(refusal.value)
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize("damage", ["truncated model", "wrong reference answer"])
def test_a_damaged_version_fails_its_smoke_test(tmp_path: Path, damage: str) -> None:
    repository = tmp_path / "built"
    publish(repository, publication(tmp_path, 0))
    what = publication(tmp_path, 1)
    if damage == "truncated model":
        what.artefacts["model.onnx"].write_bytes(what.artefacts["model.onnx"].read_bytes()[:50])
    else:
        what.references[-1].probabilities[0] += 0.1
    with (
        stage(repository, what) as staging,
        pytest.raises(PublishError, match=r"does not run|for its reference image"),
    ):
        smoke_test(staging, what)
