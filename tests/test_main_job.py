"""The main job, end to end: the classes that PyTorch gives are those that the client prints."""

import json
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from alexnet_triton.export.to_onnx import Classifier
from alexnet_triton.imaging import decode
from alexnet_triton.serving.server import Server
from alexnet_triton.training.checkpoint import Checkpoint
from main_job import ROOT, MainJob, make
from tests.waiting import wait_for


def classify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "client" / "classify.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def addresses(server: Server) -> dict[str, str]:
    return {"grpc": f"grpc://{server.grpc_address}", "http": f"http://{server.http_address}"}


@pytest.fixture(scope="module")
def pytorch_answers(main_job: MainJob, trained: Checkpoint) -> np.ndarray:
    """Probabilities of the written test pictures, float32 [1000, 10]."""
    run = Classifier.of(trained).run
    pixels = [decode(path.read_bytes(), 227) for path in main_job.pictures]
    return np.concatenate([run(np.stack(pixels[start : start + 50])) for start in range(0, len(pixels), 50)])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_server_and_pytorch_agree(
    main_job: MainJob, server: Server, pytorch_answers: np.ndarray, trained: Checkpoint, protocol: str
) -> None:
    done = classify(*main_job.pictures, "--url", addresses(server)[protocol], "--format", "json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["path"] for answer in answers] == [str(path) for path in main_job.pictures]
    served = [answer["top"][0]["index"] for answer in answers]
    assert len(served) == 1000
    assert np.sum(served == pytorch_answers.argmax(axis=1)) >= 998
    assert {answer["top"][0]["label"] for answer in answers} <= set(trained.classes)
    best = np.array([answer["top"][0]["probability"] for answer in answers])
    assert np.abs(best - pytorch_answers.max(axis=1)).max() < 0.01


def test_demo_printed_five_labels_a_picture_over_both_protocols(main_job: MainJob, trained: Checkpoint) -> None:
    assert "--url grpc://127.0.0.1:" in main_job.output
    assert "--url http://127.0.0.1:" in main_job.output
    printed = [line for line in main_job.output.splitlines() if line.strip().endswith(trained.classes)]
    assert len(printed) == 2 * 3 * 5


def test_second_run_reuses_everything(main_job: MainJob) -> None:
    before = {path: path.stat().st_mtime_ns for path in main_job.artifacts.rglob("*.onnx")}
    done = make("demo", artifacts=main_job.artifacts)
    assert done.returncode == 0, done.stderr
    assert "trained" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in main_job.artifacts.rglob("*.onnx")} == before


def test_concurrent_requests_are_batched(main_job: MainJob, server: Server) -> None:
    """32 single-image requests in flight take fewer executions than inferences, by Triton's own count."""
    pixels = decode(main_job.pictures[0].read_bytes(), 227)[None]
    tensor = tritonclient.grpc.InferInput("images", pixels.shape, "UINT8").set_data_from_numpy(pixels)
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        before = statistics(client)
        answers: SimpleQueue[Exception | None] = SimpleQueue()
        for _ in range(32):
            client.async_infer("alexnet", [tensor], lambda result, error: answers.put(error))
        assert [answers.get(timeout=60) for _ in range(32)] == [None] * 32
        wait_for(lambda: statistics(client)[0] - before[0] == 32)  # Triton counts after it has answered
        executions = statistics(client)[1] - before[1]
    assert executions < 32


def statistics(client: tritonclient.grpc.InferenceServerClient) -> tuple[int, int]:
    model = client.get_inference_statistics("alexnet").model_stats[-1]
    return model.inference_count, model.execution_count


@pytest.fixture
def bad_files(main_job: MainJob, tmp_path: Path) -> dict[str, Path]:
    whole = main_job.pictures[0].read_bytes()
    contents = {"text.jpg": b"these are words", "truncated.jpg": whole[: len(whole) // 2], "empty.jpg": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return {name: tmp_path / name for name in ("absent.jpg", *contents, "folder")}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_bad_files_have_a_line_each_and_the_good_are_answered(
    main_job: MainJob, server: Server, bad_files: dict[str, Path], protocol: str
) -> None:
    good = main_job.pictures[:2]
    done = classify(good[0], *bad_files.values(), good[1], "--url", addresses(server)[protocol], "--format", "json")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == len(bad_files)
    for path, line in zip(bad_files.values(), lines, strict=True):
        assert str(path) in line
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["path"] for answer in answers] == [str(path) for path in (good[0], *bad_files.values(), good[1])]
    assert ["top" in answer for answer in answers] == [True, *[False] * len(bad_files), True]


@pytest.mark.parametrize("content", [b"these are words", b"\xff\xd8\xff\xe0 cut", b""])
def test_the_server_refuses_what_is_no_image_as_the_callers_fault_and_lives(
    main_job: MainJob, server: Server, content: bytes
) -> None:
    def ask(image: bytes) -> tritonclient.http.InferResult:
        tensor = tritonclient.http.InferInput("encoded", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        with tritonclient.http.InferenceServerClient(server.http_address) as client:
            return client.infer("classify", [tensor])

    with pytest.raises(tritonclient.http.InferenceServerException) as refusal:
        ask(content)
    assert refusal.value.status() == "400"
    assert ask(main_job.pictures[0].read_bytes()).as_numpy("probabilities").shape == (1, 10)


def test_no_server_is_exit_code_3(main_job: MainJob) -> None:
    done = classify(main_job.pictures[0], "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:9" in done.stderr
