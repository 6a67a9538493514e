"""A saved checkpoint loads again; damaged and foreign files are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.errors import CheckpointError
from alexnet_triton.training.model import AlexNet, NetworkConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    network = AlexNet(NetworkConfig("alexnet", classes=2, width=0.05))
    original = Checkpoint(
        network.config, network.state_dict(), ("cat", "dog"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "pets", {"batch": 8}
    )
    path = tmp_path_factory.mktemp("checkpoint") / "network.pt"
    checkpoint.save(original, path)
    return original, path


def test_round_trip(saved: tuple[Checkpoint, Path]) -> None:
    original, path = saved
    loaded = checkpoint.load(path)
    assert loaded.describe() == original.describe()
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in original.weights.items())
    assert loaded.build().config == original.network
    assert json.loads(path.with_suffix(".json").read_text())["classes"] == ["cat", "dog"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["network.json", "network.pt"]


def test_a_checkpoint_with_the_old_name_of_lrn_loads(saved: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    values = torch.load(saved[1])
    values["network"]["normalization"] = not values["network"].pop("lrn")
    torch.save(values, tmp_path / "old.pt")
    assert checkpoint.load(tmp_path / "old.pt").network == replace(saved[0].network, lrn=False)


@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": {}}, {"network": {"no such setting": 1}}, {"network": 1}], ids=str
)
def test_a_file_of_other_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "other.pt")


def test_damage_is_named(saved: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(saved[1].read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"damaged.pt: damaged or not a checkpoint"):
        checkpoint.load(damaged)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pt")


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}, {"identity": 1}], ids=str)
def test_a_file_of_other_tensors_is_no_state_of_a_run(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: damaged or not the state of a run.*; remove it and start"):
        checkpoint.load_state(tmp_path / "other.pt", {"data": "pets"})


def test_weights_of_another_network_are_refused(saved: tuple[Checkpoint, Path]) -> None:
    original, _ = saved
    other = Checkpoint(NetworkConfig("alexnet_owt", 2, width=0.05), original.weights, original.classes, (), (), "pets")
    with pytest.raises(CheckpointError, match="not of network alexnet_owt"):
        other.build()
