"""The command on Ray: this machine alone, and a cluster of three nodes that loses one, its driver, and processes."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alexnet_triton.client import Classifier
from alexnet_triton.serving.server import Server
from tests.bulk.conftest import PICTURES, bulk, rows, start
from tests.serving.tiny import LABELS, answer, jpeg, network
from waiting import wait_for

COPIES = 12  # of each picture, in Parquet: enough for something to happen in the middle


@pytest.fixture(scope="module")
def many(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file with 720 paths."""
    file = tmp_path_factory.mktemp("many") / "many.parquet"
    pq.write_table(pa.table({"path": [str(each) for each in sorted(pictures.rglob("*.jpg"))[1:]] * COPIES}), file)
    return file


def assert_each_once(file: Path, output: Path) -> None:
    """Every row of the input is in the output, and none twice; the list has each path `COPIES` times."""
    expected = Counter(pq.read_table(file).column("path").to_pylist())
    found = rows(output)
    assert Counter(row["path"] for row in found) == expected
    assert {row["error"] for row in found if "cut" not in row["path"]} == {None}


def test_on_one_machine(pictures: Path, tiny_repository: Path, tmp_path: Path) -> None:
    """It starts Ray itself, answers as the network does, says what is no image, and does nothing twice."""
    output, report = tmp_path / "out", tmp_path / "report.json"
    words = (pictures, "--output", output, "--repository", tiny_repository, "--rows-per-file", 25, "--json", report)
    done = bulk(*words)
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(output)
    assert list(found[0]) == ["path", "label", "index", "probability", "top", "error", "model_version"]
    assert [row["path"] for row in found] == sorted(str(path) for path in pictures.rglob("*.*g"))
    model = network()
    for row in found:
        name = Path(row["path"]).name
        if name in ("cut.jpg", "no.png"):
            assert (row["label"], row["top"]) == (None, [])
            assert row["error"].startswith(("damaged JPEG image", "not a JPEG"))
            continue
        expected = answer(model, jpeg(int(name[:2])))
        order = np.argsort(-expected, kind="stable")[:5].tolist()
        assert [each["index"] for each in row["top"]] == order
        assert [each["probability"] for each in row["top"]] == pytest.approx(expected[order].tolist(), abs=1e-4)
        assert (row["index"], row["label"], row["error"]) == (order[0], LABELS[order[0]], None)
        assert row["model_version"] == "1"
    figures = json.loads(report.read_text())
    assert (figures["inputs"], figures["images"], sum(figures["classes"].values())) == (62, 62, PICTURES)
    assert sum(figures["errors"].values()) == 2
    assert figures["versions"]["ray"]
    times = [path.stat().st_mtime_ns for path in sorted(output.glob("*.parquet"))]
    again = bulk(*words, RAY_TMPDIR="/nowhere")  # without Ray
    assert again.returncode == 0, again.stderr
    assert "62 images by version 1; all were there" in again.stdout
    assert [path.stat().st_mtime_ns for path in sorted(output.glob("*.parquet"))] == times


@pytest.mark.long
def test_a_killed_driver_a_lost_node_and_a_killed_process(
    cluster: Any, many: Path, tiny_repository: Path, tmp_path: Path
) -> None:
    """The second run does what the first left. Actors and tasks of a node start again on the others; a process that
    the system kills is one more of them."""
    output = tmp_path / "out"
    words = (many, "--output", output, "--repository", tiny_repository, "--rows-per-file", 50)
    with start(*words, "--address", cluster.address) as process:
        wait_for(lambda: len(parts(output)) >= 2, 90)
        process.kill()
    before = parts(output)
    assert 2 <= len(before) < 15
    with start(*words, "--address", cluster.address) as process:
        wait_for(lambda: len(parts(output)) >= len(before) + 2, 90)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        kill_an_actor()
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("720 images by version 1; ")  # what Ray says of it is in a file
    assert (output / "_ray.log").stat().st_size
    assert len(cluster.worker_nodes) == 1
    assert before.items() <= parts(output).items()
    assert_each_once(many, output)


def parts(output: Path) -> dict[Path, int]:
    """The files that are there, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in output.glob("part-*")}


def kill_an_actor() -> None:
    """One of the network's, of this test's cluster."""
    actors = [each for each in psutil.process_iter(["cmdline"]) if "NetworkStage" in " ".join(each.info["cmdline"])]
    mine = [each for each in actors if os.getpid() in (above.pid for above in each.parents())]
    mine[0].send_signal(signal.SIGKILL)


@pytest.mark.long
def test_a_store_and_running_servers(cluster: Any, tiny_server: Server, pictures: Path, tmp_path: Path) -> None:
    """Images of S3, sent to a Triton: the answers that the client gets for the same files."""
    url = f"grpc://{tiny_server.grpc_address}"
    words = ("--output", tmp_path / "out", "--url", url, "--address", cluster.address)
    done = bulk("s3://photos/a", *words)
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(tmp_path / "out")
    assert len(found) == PICTURES / 2 + 1
    with Classifier(url) as classifier:
        for row in found:
            local = row["path"].replace("s3://photos", str(pictures))
            if local.endswith("cut.jpg"):
                assert "damaged JPEG" in row["error"]
                continue
            expected = classifier.classify(local)
            assert [each["label"] for each in row["top"]] == [each.label for each in expected.top]
            assert row["probability"] == pytest.approx(expected.top[0].probability, abs=1e-6)
            assert row["model_version"] == expected.version


@pytest.mark.long
def test_a_network_that_does_not_load_is_one_line(
    cluster: Any, pictures: Path, tiny_repository: Path, tmp_path: Path
) -> None:

    broken = shutil.copytree(tiny_repository, tmp_path / "broken")
    (broken / "alexnet/1/model.onnx").write_bytes(b"no network")
    start_s = time.monotonic()
    done = bulk(pictures, "--output", tmp_path / "out", "--repository", broken, "--address", cluster.address)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("alexnet-triton bulk: ")
    assert "OpenVINO does not take" in line
    assert time.monotonic() - start_s < 60
