"""The configurations in the source parse, and a repository that cannot be served is refused in one line."""

import math
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_STRING, TYPE_UINT8, ModelConfig, ModelInput

from alexnet_triton.export.repository import SOURCE
from alexnet_triton.serving.errors import RepositoryError
from alexnet_triton.serving.repository import Repository, fit_variant
from tests.serving.tiny import build_repository, publication, publish, running_server

CONFIGS = sorted(SOURCE.glob("**/*.pbtxt"))
TENSORS = {
    "preprocess": (("encoded", TYPE_STRING, [1]), ("images", TYPE_UINT8, [227, 227, 3])),
    "alexnet": (("images", TYPE_UINT8, [227, 227, 3]), ("probabilities", TYPE_FP32, [10])),
    "classify": (("encoded", TYPE_STRING, [1]), ("probabilities", TYPE_FP32, [10])),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_triton_parses_every_config_and_its_tensors_are_the_contract_s(path: Path) -> None:
    config = text_format.Parse(path.read_text(), ModelConfig())
    folder = path.parent if path.name == "config.pbtxt" else path.parent.parent
    assert config.name == folder.name
    assert config.max_batch_size > 1
    given = tuple((side[0].name, side[0].data_type, list(side[0].dims)) for side in (config.input, config.output))
    assert given == TENSORS[config.name]
    assert config.input[0].format == (ModelInput.FORMAT_NHWC if config.name == "alexnet" else ModelInput.FORMAT_NONE)


@pytest.mark.parametrize("variant", ["gpu", "cpu", "onnxruntime"])
def test_publishing_keeps_the_layout_of_the_pixels_whatever_the_network(variant: str, tmp_path: Path) -> None:
    """Clients that send pixels read it; Triton refuses it for an input of other than three dimensions."""
    publish(tmp_path / "built", publication(tmp_path, name="other", size=64))
    (images,) = Repository.open(tmp_path / "built", variant).configs["other"].input
    assert (images.format, list(images.dims)) == (ModelInput.FORMAT_NHWC, [64, 64, 3])


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no .*/nowhere: build the repository"):
        Repository.open(tmp_path / "nowhere", "cpu")


def test_empty(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no model `classify`"):
        Repository.open(tmp_path, "cpu")


def test_a_file_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="file cannot be read: Not a directory"):
        Repository.open(tmp_path / "file", "cpu")


def test_broken_config_is_named(tmp_path: Path) -> None:
    built = build_repository(tmp_path / "built")
    Repository.open(built, "cpu").config_file("alexnet").write_text("name: alexnet {")
    with pytest.raises(RepositoryError, match=r"alexnet/configs/cpu(-\d+)?\.pbtxt is broken"):
        Repository.open(built, "cpu")


def test_config_of_bytes_is_named(tmp_path: Path) -> None:
    built = build_repository(tmp_path / "built")
    Repository.open(built, "cpu").config_file("alexnet").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RepositoryError, match=r"alexnet/configs/cpu(-\d+)?\.pbtxt is broken"):
        Repository.open(built, "cpu")


def test_reference_answers_are_read_and_required(tiny_repository: Path) -> None:
    repository = Repository.open(tiny_repository, "cpu")
    first, second = repository.reference_answers("1")
    assert first.image != second.image
    answer = [first.probabilities[index] for index in range(10)]
    assert first.distance(answer) == 0
    answer[3] += 0.004  # of any class, not only of the likeliest
    assert first.distance(answer) == pytest.approx(0.004)
    assert first.distance(answer) > first.tolerance
    assert first.distance(answer[:9]) == first.distance([*answer[:9], math.nan]) == math.inf
    with pytest.raises(RepositoryError, match=r"no reference answer in .*/classify/9.*publish the model again"):
        repository.reference_answers("9")


def test_the_single_reference_of_an_older_publication_is_read(tmp_path: Path) -> None:
    folder = build_repository(tmp_path / "built") / "classify" / "1"
    (folder / "reference.json").write_text('{"index": 2, "label": "Pullover", "probability": 0.9}')
    (folder / "reference.jpg").write_bytes(b"an image")
    (old,) = Repository.open(tmp_path / "built", "cpu").reference_answers("1")
    assert (old.image, old.index, old.label) == (b"an image", 2, "Pullover")
    assert old.distance([0.0, 0.04, 0.86]) <= old.tolerance < old.distance([0.0, 0.16, 0.84])


def test_dali_may_decode_a_little_otherwise(tmp_path: Path) -> None:
    built = build_repository(tmp_path / "built")
    tolerances = [Repository.open(built, variant).reference_answers("1")[0].tolerance for variant in ("cpu", "gpu")]
    assert tolerances == [1e-3, 5e-2]


def test_the_variant_of_the_most_cores_that_are_there(tmp_path: Path) -> None:
    built = build_repository(tmp_path / "built")
    models = [built / "alexnet", built / "classify", built / "preprocess"]
    names = {cores: fit_variant(models, "cpu", cores) for cores in (1, 2, 3, 4, 7, 16, 20, 500)}
    assert names == {1: "cpu-1", 2: "cpu", 3: "cpu", 4: "cpu-4", 7: "cpu-6", 16: "cpu-16", 20: "cpu-16", 500: "cpu-96"}
    assert fit_variant(models, "gpu", 16) == "gpu"
    (built / "preprocess" / "configs" / "cpu-16.pbtxt").unlink()  # one model has it no more
    assert fit_variant(models, "cpu", 16) == "cpu-12"


def test_cores_that_come_while_it_runs_leave_no_stub_missing(tmp_path: Path) -> None:
    with running_server(build_repository(tmp_path / "built"), cores=1) as server:
        assert server.check_health(timeout_s=5.0, patience_s=1.0)
        assert (len(server.stubs()), server.missing_stubs()) == (2, [])


def test_a_server_for_more_cores_than_there_are_answers(tmp_path: Path) -> None:
    with running_server(build_repository(tmp_path / "built"), variant="cpu-4") as server:
        assert len(server.stubs()) == 3 + 4
        assert server.missing_stubs() == []
        server.check()
