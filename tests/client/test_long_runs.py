"""Runs that are cut off and continued, and servers that go away under them."""

import csv
import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from alexnet_triton.client import BadImage, Failure
from alexnet_triton.client.errors import DeadlineExceeded, NotFetched, NotReady, Overloaded, ServerFault, Unreachable
from alexnet_triton.client.output import formatter, header
from answers import by_torch
from commands import classify, command, lines
from embedded_triton import Triton
from photographs import jpeg
from web import Quiet, serving

IMAGES, BROKEN_EVERY = 1000, 250


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, some of them broken."""
    folder = whole_folder(tmp_path_factory.mktemp("many"))
    for path in sorted(folder.iterdir())[::BROKEN_EVERY]:
        path.write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images."""
    return whole_folder(tmp_path_factory.mktemp("whole"))


def whole_folder(folder: Path) -> Path:
    pictures = [jpeg(seed) for seed in range(10)]
    for number in range(IMAGES):
        (folder / f'{number:05} "x"\n.jpg').write_bytes(pictures[number % 10])
    return folder


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def paths_in(file: Path) -> list[str]:
    if file.suffix == ".csv":
        with file.open(newline="") as stream:
            return [row["path"] for row in csv.DictReader(stream)]
    return [line["path"] for line in lines(file.read_bytes())]


@pytest.mark.parametrize(("scheme", "suffix"), [("grpc", "csv"), ("http", "jsonl")])  # a file knows no protocol
def test_killed_and_resumed_every_image_is_in_the_file_once(
    scheme: str, triton: Triton, many: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"results.{suffix}"
    words = ["-r", many, "--url", triton.urls[scheme], "--output", file, "--concurrency", 32, "--resume", "--top", 2]
    for kill in range(3):
        before = size(file)
        process = subprocess.Popen(command(*words), stderr=subprocess.DEVNULL)
        while size(file) < before + 20_000 and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, f"it was over before kill {kill}"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with file.open("ab") as stream:
        stream.write(b'{"path": "cut o' if suffix == "jsonl" else b'"cut ""o')
    done = classify(*words)
    assert done.returncode == 1  # the broken ones
    counts = Counter(paths_in(file))
    assert set(counts.values()) == {1}
    assert sorted(counts) == sorted(str(path) for path in many.iterdir())
    again = classify(*words)
    assert (again.returncode, again.stderr) == (1, b"")
    assert Counter(paths_in(file)) == counts


@pytest.mark.parametrize(("scheme", "folder", "code"), [("http", "whole", 0), ("grpc", "many", 1)])
def test_the_server_is_killed_and_started_again_under_the_command(
    scheme: str, folder: str, code: int, own: Triton, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    images, file = request.getfixturevalue(folder), tmp_path / "results.jsonl"
    process = subprocess.Popen(
        command("-r", images, "--url", own.urls[scheme], "-o", file, "--timeout", 60), stderr=subprocess.PIPE
    )
    while size(file) < 50_000:
        time.sleep(0.01)
    own.kill()
    assert process.poll() is None
    assert len(lines(whole_lines(file))) < IMAGES
    time.sleep(0.5)
    own.start()
    _, complaints = process.communicate(timeout=120)
    broken = IMAGES // BROKEN_EVERY if code else 0
    assert (process.returncode, complaints.count(b"\n")) == (code, broken)
    answers = lines(file.read_bytes())
    assert sorted(answer["path"] for answer in answers) == sorted(map(str, images.iterdir()))  # each once
    best = [int(by_torch(jpeg(seed)).argmax()) for seed in range(10)]
    for answer in answers:
        number = int(Path(answer["path"]).name[:5])
        if broken and number % BROKEN_EVERY == 0:
            assert "error" in answer
        else:
            assert answer["top"][0]["index"] == best[number % 10]


def whole_lines(file: Path) -> bytes:
    return file.read_bytes().rpartition(b"\n")[0]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_never_answers(scheme: str, many: Path, own: Triton) -> None:
    own.freeze()
    start = time.monotonic()
    done = classify("-r", many, "--url", own.urls[scheme], "--timeout", 2)
    assert time.monotonic() - start < 60
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (3, b"", 1)
    assert b"--timeout" in done.stderr


def test_a_server_that_stops_answering_keeps_what_was_written(many: Path, own: Triton, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    process = subprocess.Popen(
        command("-r", many, "--url", own.urls["http"], "-o", file, "--timeout", 3), stderr=subprocess.PIPE
    )
    while size(file) < 50_000:
        time.sleep(0.01)
    own.freeze()
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"results are in {file}, --resume goes on".encode() in complaints.splitlines()[-1]


def test_waiting_for_a_server_that_starts(own: Triton, pictures: list[Path]) -> None:
    own.kill()
    process = subprocess.Popen(
        command(pictures[0], "--url", own.urls["grpc"], "--wait", 60, "--format", "json"), stdout=subprocess.PIPE
    )
    time.sleep(1)
    assert process.poll() is None
    own.start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(output)["path"] == str(pictures[0])
    own.kill()
    assert classify(pictures[0], "--url", own.urls["grpc"], "--wait", 0.5).returncode == 3


def test_interrupted_by_the_keyboard(url: str, many: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    process = subprocess.Popen(command("-r", many, "--url", url, "-o", file), stderr=subprocess.PIPE)
    while size(file) < 10_000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == 130
    assert complaints.splitlines()[-1] == b"alexnet-classify: interrupted; nothing is left half written"


def test_one_writer_a_file(url: str, many: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    first = subprocess.Popen(command("-r", many, "--url", url, "-o", file), stderr=subprocess.DEVNULL)
    while size(file) < 1000:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it does not end before the second one looks
    second = classify("-r", many, "--url", url, "-o", file, "--resume")
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert b"another run is writing it" in second.stderr


@pytest.mark.parametrize("content", ["not json\n", "[1]\n", '{"no": "path"}\n'])
def test_a_file_of_something_else_is_left_alone(url: str, tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.json"
    file.write_text(content)
    done = classify("a.jpg", "--url", url, "-o", file, "--resume")
    assert done.returncode == 2
    assert b"holds no json results" in done.stderr
    assert file.read_text() == content


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--top", 3], "begun with --top 2; give the same, or another --output"),
        (["--threshold", 0.1], "begun with --threshold 0.2; "),
        (["--model", "alexnet"], "begun with --model classify; "),
        (["--model-version", 1], "begun with no --model-version; "),
        (["--labels", "names.txt"], "begun with other --labels; "),
    ],
)
def test_a_run_goes_on_as_it_began(
    triton: Triton, pictures: list[Path], tmp_path: Path, suffix: str, changed: list[object], said: str
) -> None:
    file = f"results.{suffix}"
    (tmp_path / "names.txt").write_text("".join(f"class {number}\n" for number in range(10)))
    words = ["--url", triton.urls["grpc"], "-o", file, "--top", 2, "--threshold", 0.2]
    assert classify(*pictures[:2], *words, cwd=tmp_path).returncode == 0
    before = (tmp_path / file).read_bytes()
    refused = classify(*pictures[:4], *words, "--resume", *changed, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (2, 1)
    assert said in refused.stderr.decode()
    assert (tmp_path / file).read_bytes() == before
    assert classify(*pictures[:4], *words, "--resume", cwd=tmp_path).returncode == 0
    assert paths_in(tmp_path / file) == list(map(str, pictures[:4]))
    assert classify(pictures[0], *words, *changed, cwd=tmp_path).returncode == 0  # a new run, with its own settings


def test_the_reader_of_the_results_goes_away(url: str, many: Path) -> None:
    process = subprocess.Popen(
        command("-r", many, "--url", url, "--format", "json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_image_that_failed_by_its_host_is_tried_again(
    triton: Triton, pictures: list[Path], tmp_path: Path, suffix: str
) -> None:
    file, bad = tmp_path / f"results.{suffix}", tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")

    class Host(Quiet):
        status = 503

        def respond(self) -> None:
            self.answer(self.status, jpeg(1))

    with serving(Host) as host:
        asked = [pictures[0], bad, f"{host}/image", "--allow-urls", "--url", triton.urls["http"], "-o", file]
        assert classify(*asked).returncode == 1
        assert b"HTTP status 503 [transient]" in file.read_bytes()
        Host.status = 200
        again = classify(*asked, "--resume")
    assert (again.returncode, again.stderr) == (1, b"")  # the bad one, which is not tried again
    assert paths_in(file) == [str(pictures[0]), str(bad), f"{host}/image"]
    assert b"[transient]" not in file.read_bytes()


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_what_a_server_failed_is_tried_again(triton: Triton, pictures: list[Path], tmp_path: Path, suffix: str) -> None:
    file, form = tmp_path / f"results.{suffix}", suffix.removesuffix("l")
    failures = [
        kind("as it was", "host:1") for kind in (Unreachable, NotReady, DeadlineExceeded, Overloaded, ServerFault)
    ]
    failures += [BadImage("as it was"), NotFetched("as it was")]
    records = [Failure(str(path), error) for path, error in zip(pictures, failures, strict=False)]
    file.write_text(header(form, 5) + "".join(map(formatter(form, 5, terminal=False), records)))
    file.chmod(0o640)
    done = classify(*pictures[:7], "--url", triton.urls["grpc"], "-o", file, "--resume")
    assert (done.returncode, done.stderr) == (1, b"")
    assert sorted(paths_in(file)) == list(map(str, pictures[:7]))
    assert paths_in(file)[0] == str(pictures[5])
    assert file.read_bytes().count(b"as it was") == 1
    assert file.stat().st_mode & 0o777 == 0o640
