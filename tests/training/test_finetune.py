"""A run starts from a trained network: what is taken over, what trains when, and what is refused."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alexnet_triton.training import checkpoint, torchvision_weights, train
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import ArraySplit
from alexnet_triton.training.device import Group
from alexnet_triton.training.download import Published
from alexnet_triton.training.finetune import load_initial
from alexnet_triton.training.loading import center_crop
from alexnet_triton.training.model import AlexNet, NetworkConfig, Normalize
from alexnet_triton.training.recipe import RECIPES
from alexnet_triton.training.trainer import Trainer
from docs import finetune
from tests.training.test_run import members, start

NETWORK = NetworkConfig("alexnet", classes=4, width=0.05, lrn=False, groups=1)
MEAN, STD = (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)
QUICK = ["--batch", "8", "--precision", "fp32"]


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a narrow network of four classes, with a normalisation of its own."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("init") / "base.pt"
    names = ("a", "b", "c", "d")
    checkpoint.save(Checkpoint(NETWORK, AlexNet(NETWORK).state_dict(), names, MEAN, STD, "letters"), path)
    return path


def write_noise(folder: Path, classes: int, images: dict[str, int]) -> Path:
    """Class folders of small images of noise, no two alike."""
    rng = np.random.default_rng(0)
    for split, count in images.items():
        for label in range(classes):
            (folder / split / f"class {label}").mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(40 * label, 100 + 40 * label, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class {label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("photos") / "noise", 3, {"train": 16, "test": 4})


def arguments(photos: Path, init: object, output: Path, *more: str) -> list[str]:
    return ["--data", str(photos), "--init", str(init), "--output", str(output), *QUICK, *more]


@pytest.fixture
def trainer(init: Path) -> Trainer:
    initial = load_initial(str(init), Group())
    network = AlexNet(initial.network(classes=3, dropout=0.0))
    new_layer = initial.hand_over(network)
    rng = np.random.default_rng(0)
    split = ArraySplit(rng.integers(0, 256, (40, 32, 32, 3), np.uint8), np.arange(40) % 3)
    recipe = replace(RECIPES["finetune"], batch=4, epochs=1, budget_s=None, new_layer_alone=0.5, precision="fp32")
    return Trainer(network, Normalize(MEAN, STD), split, center_crop(227), recipe, new_layer=new_layer)


def taken_over(trainer: Trainer) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in trainer.network.state_dict().items() if "classifier.6" not in name}


def test_the_new_layer_trains_first_and_the_others_at_a_tenth_of_its_rate(trainer: Trainer, init: Path) -> None:
    before = checkpoint.load(init).weights
    new = trainer.network.state_dict()["classifier.6.weight"].clone()
    steps = trainer.epoch()
    for _ in range(5):
        next(steps)
    assert all(torch.equal(each, before[name]) for name, each in taken_over(trainer).items())
    assert not torch.equal(trainer.network.state_dict()["classifier.6.weight"], new)
    next(steps)
    assert not any(torch.equal(each, before[name]) for name, each in taken_over(trainer).items())
    own, others = trainer.optimizer.param_groups
    assert others["lr"] == pytest.approx(own["lr"] / 10)
    assert trainer.schedule.learning_rate == own["lr"]


def test_a_run_says_what_it_took_over_and_keeps_the_normalisation(
    photos: Path, init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(photos, init, tmp_path / "new.pt", "--epochs", "1")) == 0
    log = capsys.readouterr().err
    said = f"taken over from {init} (alexnet, 4 classes of letters): 14 of 16 tensors; new: the last layer, 3 classes"
    assert said in log
    trained = checkpoint.load(tmp_path / "new.pt")
    assert trained.network == replace(NETWORK, classes=3, dropout=RECIPES["finetune"].dropout)
    assert (trained.mean, trained.std, trained.recipe["name"]) == (MEAN, STD, "finetune")
    sha256 = hashlib.sha256(init.read_bytes()).hexdigest()
    assert (trained.taken_over["tensors"], trained.taken_over["sha256"]) == (14, sha256)


@pytest.mark.parametrize("recipe", ["demo", "fast", "paper"])
def test_every_recipe_starts_from_a_trained_network(recipe: str, photos: Path, init: Path, tmp_path: Path) -> None:
    more = ["--recipe", recipe, "--epochs", "1", "--holdout", "0.2"]
    assert train.main(arguments(photos, init, tmp_path / "new.pt", *more)) == 0
    assert checkpoint.load(tmp_path / "new.pt").recipe["name"] == recipe


def test_a_stopped_run_goes_on_from_the_same_network_alone(
    photos: Path, init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole.pt", tmp_path / "stopped.pt"
    words = arguments(photos, init, stopped, "--epochs", "2")
    assert train.main(arguments(photos, init, whole, "--epochs", "2")) == 0
    config = train.make_config(train.parse(words), 3, 1, load_initial(str(init), Group()))
    stop_after_an_epoch(config, photos)
    other = shutil.copy(whole, tmp_path / "other.pt")
    assert train.main([*arguments(photos, other, stopped, "--epochs", "2"), "--resume"]) == 1
    assert "stopped.state.pt: a run with init" in capsys.readouterr().err
    assert train.main([*words, "--resume"]) == 0
    ours, theirs = (checkpoint.load(path).weights for path in (stopped, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def stop_after_an_epoch(config: train.RunConfig, photos: Path) -> None:
    with train.progress_bar(False) as progress:
        run = train.TrainingRun(config, train.open_dataset(str(photos)), Group(), progress)
        run.scalars, run.task = None, progress.add_task("training", note="")
        run._epoch(threading.Event())
        run._save_state()


def test_two_processes_make_the_steps_of_one(photos: Path, init: Path, tmp_path: Path) -> None:
    options = ["--epochs", "2", "--dropout", "0", "--log-every", "1"]
    assert train.main(arguments(photos, init, tmp_path / "one.pt", *options)) == 0
    train_two = ["alexnet_triton", "train", *arguments(photos, init, tmp_path / "two.pt", *options)]
    with members(2) as both:
        pair = [start(*train_two, threads=1, **member) for member in both]
        errors = [process.communicate(timeout=250)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert "".join(errors).count("taken over from") == 1
    one, two = (checkpoint.load(tmp_path / f"{name}.pt").weights for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such checkpoint"),
        (b"half a checkpoint", "damaged or not a checkpoint of this project"),
        ("state_dict", "damaged or not a checkpoint of this project"),
        ("other weights", "these weights are not of network alexnet"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(
    content: object, reason: str, photos: Path, init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "init.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "state_dict":
        torch.save(checkpoint.load(init).weights, path)
    elif content:
        checkpoint.save(replace(checkpoint.load(init), network=replace(NETWORK, width=0.1)), path)
    assert train.main(arguments(photos, path, tmp_path / "new.pt")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"alexnet-triton train: {path}: ")
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--width", "0.5", "--no-lrn"], "--init brings its network; leave out --width, --no-lrn"),
        (["--network", "alexnet_owt"], "leave out --network"),
        (["--output", "./base.pt"], "would be overwritten; give another --output"),
    ],
)
def test_options_against_the_trained_network_are_refused(
    wrong: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        train.parse(["--init", "base.pt", *wrong])
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network of torchvision's layout and its labels, served over HTTP in place of the published ones."""
    site = tmp_path / "site"
    site.mkdir()
    torch.save(AlexNet(NetworkConfig("alexnet_owt", classes=12)).state_dict(), site / "weights.pth")
    (site / "labels.txt").write_text("\n".join(f"class {number}" for number in range(12)))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for constant, name in (("WEIGHTS", "weights.pth"), ("LABELS", "labels.txt")):
            content = (site / name).read_bytes()
            address = f"http://127.0.0.1:{server.server_port}/{name}"
            of = Published(address, hashlib.sha256(content).hexdigest(), len(content))
            monkeypatch.setattr(torchvision_weights, constant, of)
        monkeypatch.setattr(torchvision_weights, "FETCHED", tmp_path / "fetched")
        yield
        server.shutdown()


@pytest.mark.usefixtures("published")
def test_published_weights_are_fetched_and_taken_over() -> None:
    initial = load_initial("imagenet", Group())
    network = AlexNet(initial.network(classes=3, dropout=0.5))
    before = network.classifier[-1].weight.clone()
    assert torch.equal(initial.hand_over(network).weight, before)
    own = network.state_dict()
    taken = [name for name, each in initial.trained.weights.items() if torch.equal(own[name], each)]
    assert len(taken) == 14
    assert initial.summary(3).startswith("taken over from imagenet (alexnet_owt, 12 classes of imagenet): 14 of 16")
    assert initial.sha256 == torchvision_weights.WEIGHTS.sha256


def test_the_comparison_with_training_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_noise(tmp_path / "images", 4, {"train": 12, "test": 3})
    report, folder = tmp_path / "finetune.json", tmp_path / "work"
    words = ["--images", images, "--folder", folder, "--json", report, "--count", 10, "--seeds", 5, "--width", 0.05]
    words += ["--base-budget", 0.2, "--budget", 0.2]
    assert finetune.main([str(word) for word in words]) == 0
    figures = json.loads(report.read_text())
    assert (figures["base"]["classes"], figures["classes"]) == (["class 0", "class 1"], ["class 2", "class 3"])
    fine, fresh = figures["runs"]
    assert (fine["way"], fresh["way"], fine["images"], fresh["images"]) == (finetune.WITH, finetune.WITHOUT, 6, 6)
    few = sorted((folder / "few-5" / "train").glob("*/*"))
    assert len(few) == 20
    assert checkpoint.load(folder / "few-5-0.pt").taken_over["source"] == str(folder / "base.pt")
    points = f"{100 * (fine['top1'] - fresh['top1']):+.1f}"
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == points
