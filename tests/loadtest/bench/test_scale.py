"""How the server grows: every axis on a real server, briefly, and the model of cost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.loadtest.bench import scale
from alexnet_triton.loadtest.bench.config import IMAGES, BenchConfig, prepare_images
from alexnet_triton.loadtest.bench.servers import Triton
from alexnet_triton.serving import Server
from tests.serving.tiny import jpeg

GENERATOR, TRITON, DECODER, NETWORK = "load generator", "tritonserver", "stub of preprocess", "stub of alexnet"


def setting(megapixels: float, images_a_request: int, **known: Any) -> dict[str, Any]:
    """What an image of a tenth of a megabyte a megapixel costs, by a law that the model can say."""
    request, megabytes = 1 / images_a_request, megapixels / 10
    core_ms = {
        DECODER: 1 + 40 * megabytes,
        NETWORK: 5.0,
        TRITON: 2 * megabytes + 0.5 * request,
        GENERATOR: megabytes,
        "watcher": 0.01,
    }
    return {
        "megapixels": megapixels,
        "megabytes": megabytes,
        "images_a_request": images_a_request,
        "cores": 2,
        "core_ms": core_ms,
        **known,
    }


def test_three_settings_predict_the_others() -> None:
    cost = scale.fit([setting(0.2, 1), setting(3, 1), setting(0.2, 16)])
    for known in (setting(1, 1), setting(12, 1, cores=1), setting(0.2, 4, cores=8)):
        assert cost.core_ms(known) == pytest.approx(known["core_ms"])
        assert cost.rate(known) == pytest.approx(1e3 * known["cores"] / sum(known["core_ms"].values()))


def test_more_cores_are_said_with_their_limits() -> None:
    """Twice the cores: twice of everything, as the callers have machines of their own, up to the card's 10 Gbit/s."""
    base = setting(0.2, 1)
    cost = scale.fit([base, setting(3, 1), setting(0.2, 16)])
    few, many = (scale.extrapolate(cost, base, cores, weights_mb=64) for cores in (8, 16))
    own_ms = sum(base["core_ms"].values()) - base["core_ms"][GENERATOR]
    assert few["images_per_s"] == pytest.approx(8e3 / own_ms)
    assert few["gigabits_per_s"] == pytest.approx(few["images_per_s"] * 0.02 * 8 / 1e3)
    assert few["weights_gb_per_s"] == pytest.approx(few["images_per_s"] * 64 / 16 / 1e3)
    assert few["card_full_at_cores"] == pytest.approx(8 * 10 / few["gigabits_per_s"])
    assert few["triton_cores"] == pytest.approx(8 * base["core_ms"][TRITON] / own_ms)
    doubled = {name: 2 * value for name, value in few.items() if name != "card_full_at_cores"}
    assert {**doubled, "card_full_at_cores": few["card_full_at_cores"]} == pytest.approx(many)


def test_what_is_started_meanwhile_has_so_many_cores() -> None:
    usable = os.sched_getaffinity(0)
    with scale.only_cores(1):
        told = subprocess.run(
            [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"], capture_output=True
        )
    assert (told.stdout, os.sched_getaffinity(0)) == (b"1\n", usable)


@pytest.fixture
def running(tiny_server: Server, tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The tests' server, for each axis that needs none of its own."""
    start, here = scale.started, SimpleNamespace(pid=os.getpid())

    @contextmanager
    def started(repository: Path, config: BenchConfig) -> Iterator[tuple[Triton, float]]:
        with ExitStack() as stack:
            if repository == tiny_repository:
                yield Triton(here, tiny_server.http_address, tiny_server.grpc_address), 1.0  # type: ignore[arg-type]
            else:
                yield stack.enter_context(start(repository, config))

    monkeypatch.setattr(scale, "started", started)
    return tiny_server


@pytest.mark.usefixtures("running")
def test_every_axis_on_a_real_server(tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed in range(IMAGES):
        (photographs / f"{seed}.jpg").write_bytes(jpeg(seed))
    config = BenchConfig(tiny_repository, tmp_path, photographs, seconds=1, warm_up_s=1, repeats=1)
    brief = {"CONNECTION_COUNTS": (1, 8), "MEGAPIXELS": (0.1,), "REQUEST_IMAGES": (2,), "NETWORK_COUNTS": (2,)}
    brief |= {"CORE_COUNTS": (), "IN_FLIGHT": 8, "BUSY": 8}
    brief["FITTED"] = (("connections", 8), ("megapixels", 0.1), ("images a request", 2))
    for name, value in brief.items():
        monkeypatch.setattr(scale, name, value)
    prepare_images(config)
    result = scale.measure(config, lambda step: None)
    measured = {(row["target"], row["value"]): row for row in result["settings"]}
    assert measured.keys() == {
        *(("connections", count) for count in (1, 8)),
        *(("megapixels", 0.1), ("images a request", 2), ("networks", 2)),
    }
    figures = [row[name] for row in measured.values() for name in ("images_per_s", "p99_ms", "mib", "start_s")]
    costs = [row["core_ms"][kind] for row in measured.values() for kind in (DECODER, GENERATOR)]
    assert min(figures + costs) > 0
    assert measured["megapixels", 0.1]["megapixels"] == pytest.approx(0.1, rel=0.02)
    assert "stub of alexnet-2" in measured["networks", 2]["core_ms"]
    assert (measured["connections", 1]["predicted_per_s"], len(result["ratios"])) == ("", 1)
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["memory_gb_per_s"] > 0
    scale.draw(tmp_path / "scale.png", {"images": "100 photographs", **result})
    with Image.open(tmp_path / "scale.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
