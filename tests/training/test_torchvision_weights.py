"""Published weights are fetched from a real HTTP server, checked, and converted to a checkpoint."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from alexnet_triton.training import checkpoint, torchvision_weights
from alexnet_triton.training.download import Published
from alexnet_triton.training.errors import CheckpointError
from alexnet_triton.training.model import AlexNet, NetworkConfig

CLASSES = 12


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a state_dict and labels, served over HTTP."""
    folder = tmp_path_factory.mktemp("site")
    torch.manual_seed(0)
    torch.save(AlexNet(NetworkConfig("alexnet_owt", classes=CLASSES)).state_dict(), folder / "weights.pth")
    names = ["crane", *(f"class {number}" for number in range(1, CLASSES - 1)), "crane"]
    (folder / "labels.txt").write_text("\n".join(names))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def published(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = site
    for constant, name in (("WEIGHTS", "weights.pth"), ("LABELS", "labels.txt")):
        content = (folder / name).read_bytes()
        published = Published(f"{address}/{name}", hashlib.sha256(content).hexdigest(), len(content))
        monkeypatch.setattr(torchvision_weights, constant, published)


@pytest.mark.usefixtures("published")
def test_imagenet_weights_are_fetched_once_and_become_a_checkpoint(site: tuple[Path, str], tmp_path: Path) -> None:
    command = ["--weights", "imagenet", "--output", str(tmp_path / "out.pt"), "--fetched", str(tmp_path / "fetched")]
    assert torchvision_weights.main(command) == 0
    loaded = checkpoint.load(tmp_path / "out.pt")
    assert loaded.network.name == "alexnet_owt"
    assert (loaded.classes[0], loaded.classes[-1]) == ("crane (0)", f"crane ({CLASSES - 1})")
    source = torch.load(site[0] / "weights.pth")
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in source.items())
    arrived = (tmp_path / "fetched" / "weights.pth").stat().st_mtime_ns
    assert torchvision_weights.main(command) == 0
    assert (tmp_path / "fetched" / "weights.pth").stat().st_mtime_ns == arrived


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("fault", ["other content", "truncated", "absent"])
def test_anything_else_is_refused_in_one_line(
    site: tuple[Path, str],
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published, reason = torchvision_weights.WEIGHTS, "not the published file"
    if fault == "other content":
        published = replace(published, sha256="0" * 64)
    elif fault == "truncated":
        published = replace(published, length=published.length - 1)
    else:
        published, reason = replace(published, address=f"{site[1]}/absent.pth"), "cannot be fetched (HTTP Error 404"
    monkeypatch.setattr(torchvision_weights, "WEIGHTS", published)
    command = ["--weights", "imagenet", "--output", str(tmp_path / "out.pt"), "--fetched", str(tmp_path / "fetched")]
    assert torchvision_weights.main(command) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert list((tmp_path / "fetched").iterdir()) == []


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}, "epoch": 5}, {"classifier.6.bias": 5}], ids=str)
def test_a_file_of_anything_else_is_no_state_dict(content: object, site: tuple[Path, str], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: .*no state_dict.*; save model\.state_dict\(\) alone"):
        torchvision_weights.convert(tmp_path / "other.pth", site[0] / "labels.txt")


def test_a_file_of_weights_needs_labels(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        torchvision_weights.parse(["alexnet.pth"])
    assert "needs --labels" in capsys.readouterr().err
