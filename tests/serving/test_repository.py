"""Configurations as people write them, and built repositories as they should not be."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_STRING, TYPE_UINT8, ModelConfig

from alexnet_triton.serving import RepositoryError
from alexnet_triton.serving.repository import VARIANTS, Repository
from tests.serving.tiny import SOURCE, build_repository

CONFIGS = sorted(SOURCE.glob("**/*.pbtxt"))
TENSORS = {
    "preprocess": (("encoded", TYPE_STRING, [1]), ("images", TYPE_UINT8, [227, 227, 3])),
    "alexnet": (("images", TYPE_UINT8, [227, 227, 3]), ("probabilities", TYPE_FP32, [10])),
    "classify": (("encoded", TYPE_STRING, [1]), ("probabilities", TYPE_FP32, [10])),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_config_is_triton_s_and_keeps_the_contract(path: Path) -> None:
    config = text_format.Parse(path.read_text(), ModelConfig())
    folder = path.parent if path.name == "config.pbtxt" else path.parent.parent
    assert config.name == folder.name
    assert config.max_batch_size > 1
    given = tuple((side[0].name, side[0].data_type, list(side[0].dims)) for side in (config.input, config.output))
    assert given == TENSORS[config.name]


def test_each_model_has_every_variant() -> None:
    found = {str(path.relative_to(SOURCE)) for path in CONFIGS}
    assert {f"{model}/{file}" for model in TENSORS for file in VARIANTS.values()} <= found


def test_on_a_gpu_every_size_that_the_queue_can_form_has_a_graph_and_is_warmed_up() -> None:
    config = text_format.Parse((SOURCE / "alexnet" / "config.pbtxt").read_text(), ModelConfig())
    assert config.optimization.cuda.graphs
    covered: list[int] = []
    for graph in config.optimization.cuda.graph_spec:
        covered += range(graph.graph_lower_bound.batch_size or graph.batch_size, graph.batch_size + 1)
        assert list(graph.input["images"].dim) == list(config.input[0].dims)
    assert covered == list(range(1, config.max_batch_size + 1))
    graphs = [graph.batch_size for graph in config.optimization.cuda.graph_spec]
    assert [sample.batch_size for sample in config.model_warmup] == graphs


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
    (built / "alexnet" / "configs" / "cpu.pbtxt").write_text("name: alexnet {")
    with pytest.raises(RepositoryError, match=r"alexnet/configs/cpu\.pbtxt is broken"):
        Repository.open(built, "cpu")


def test_config_of_bytes_is_named(tmp_path: Path) -> None:
    built = build_repository(tmp_path / "built")
    (built / "alexnet" / "configs" / "cpu.pbtxt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RepositoryError, match=r"alexnet/configs/cpu\.pbtxt is broken"):
        Repository.open(built, "cpu")


def test_reference_answer_is_read_and_wanted(tiny_repository: Path) -> None:
    repository = Repository.open(tiny_repository, "cpu")
    known = repository.reference_answer("1")
    assert known.agrees(known.index, known.probability + 0.04)
    assert not known.agrees(known.index, known.probability + 0.06)
    assert not known.agrees(known.index + 1, known.probability)
    with pytest.raises(RepositoryError, match=r"no reference answer in .*/classify/9"):
        repository.reference_answer("9")
