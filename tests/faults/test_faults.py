"""The short form of every class of faults, on one server with a tiny network; and the suite fails when it must."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from alexnet_triton.serving.supervisor import SHARED_MEMORY
from tests.faults import __main__ as command
from tests.faults import suite
from tests.faults.__main__ import CLASSES
from tests.faults.suite import FAILED, NOT_RUN, PASSED, TINY, Context, FaultClass, NotRunError, Seen
from tests.faults.wire import RIGHT, WRONG, Tally
from tests.serving.tiny import LABELS, build_repository, jpeg, network


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One server, and the gateway before it, for the whole file."""
    folder = tmp_path_factory.mktemp("faults")
    repository = build_repository(folder / "built")
    model = network()
    onnx.helper.set_model_props(model, {"classes": json.dumps(LABELS)})
    onnx.save(model, folder / "model.onnx")
    with command.served(repository, folder / "work", [jpeg(seed) for seed in range(TINY.images)], TINY) as running:
        running.model = folder / "model.onnx"
        yield running


# It takes half a minute; tests/export/test_live.py and tests/serving/test_watch.py have its parts.
LONG = {33}
# Servers killed, stopped, started on damaged files or without room, and TLS: tests/serving and tests/docker do it too.
ELSEWHERE = {21, 22, 23, 24, 27}


@pytest.mark.parametrize("number", sorted(CLASSES.keys() - LONG - ELSEWHERE))
def test_the_short_form_passes(number: int, context: Context) -> None:
    row = suite.run_class(context, CLASSES[number])
    assert row.verdict == PASSED, row.seen
    assert row.times > 0
    assert row.seen


def test_there_are_thirty_three_classes() -> None:
    assert list(CLASSES) == list(range(1, 34))
    assert all(each.name and each.done for each in CLASSES.values())


# ---- the suite itself


def raises(context: Context) -> Seen:
    raise ValueError("two\nlines")


def answers_wrongly(context: Context) -> Seen:
    tally = Tally()
    tally.add(RIGHT)
    tally.add(WRONG)
    return Seen(2, str(tally), tally.problems())


def kills_the_server(context: Context) -> Seen:
    return CLASSES[21].run(context)


def leaves_shared_memory(context: Context) -> Seen:
    (SHARED_MEMORY / f"{context.server.prefix()}left").touch()
    return Seen(1, "left something")


def cannot_be_run(context: Context) -> Seen:
    raise NotRunError("no such machine")


def passes(context: Context) -> Seen:
    return Seen(1, "a | b")


BROKEN = {1: (raises, "ValueError: two\\nlines"), 2: (answers_wrongly, "1 requests: wrong answer")}


@pytest.fixture
def chosen(context: Context, monkeypatch: pytest.MonkeyPatch) -> dict[int, FaultClass]:
    """The command's classes, which a test fills; its server is this file's."""
    classes: dict[int, FaultClass] = {}

    @contextmanager
    def served(*_: object) -> Iterator[Context]:
        yield context

    monkeypatch.setattr(command, "CLASSES", classes)
    monkeypatch.setattr(command, "served", served)
    monkeypatch.setattr(command, "prepare_images", lambda _: "a hundred pictures")
    monkeypatch.setattr(command.BenchConfig, "load_images", lambda _: [])
    return classes


def run_command(folder: Path) -> tuple[int, str, list[dict[str, object]]]:
    """The exit code, the table and the rows of the JSON."""
    table, figures = folder / "faults.md", folder / "faults.json"
    words = ["--folder", folder / "work", "--table", table, "--json", figures]
    code = command.main(list(map(str, words)))
    return code, table.read_text(), json.loads(figures.read_text())["rows"]


def test_a_failing_class_fails_the_suite(
    chosen: dict[int, FaultClass], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen |= {number: FaultClass(number, "broken", "", run) for number, (run, _) in BROKEN.items()}
    chosen[3] = FaultClass(3, "whole", "done", passes)
    code, table, rows = run_command(tmp_path)
    assert code == 1
    assert [row["verdict"] for row in rows] == [FAILED, FAILED, PASSED]
    assert all(reason in str(rows[number - 1]["seen"]) for number, (_, reason) in BROKEN.items())
    assert "| 3 | whole | done | 1 | a / b | passed |" in table
    assert table.count("| FAILED |") == 2
    captured = capsys.readouterr()
    assert "classes 1, 2 FAILED" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_what_cannot_be_run_is_said_and_fails_nothing(chosen: dict[int, FaultClass], tmp_path: Path) -> None:
    chosen[1] = FaultClass(1, "elsewhere", "done", cannot_be_run)
    code, table, _ = run_command(tmp_path)
    assert code == 0
    assert f"{NOT_RUN}: no such machine" in table
    assert all(word in table for word in ("commit ", "tritonclient ", " cores", "Command: "))


def test_a_restart_that_nobody_asked_for_is_a_failure(context: Context) -> None:
    row = suite.run_class(context, FaultClass(1, "", "", kills_silently))
    assert row.verdict == FAILED
    assert "1 restarts of the server, not 0" in row.seen


def kills_silently(context: Context) -> Seen:
    seen = kills_the_server(context)
    context.restarts_expected = 0
    return seen


def test_what_is_left_is_a_failure(context: Context) -> None:
    row = suite.run_class(context, FaultClass(1, "", "", leaves_shared_memory))
    (SHARED_MEMORY / f"{context.server.prefix()}left").unlink()
    assert "names in /dev/shm" in row.seen
    assert row.verdict == FAILED


def test_classes_are_numbers() -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--only", "1,34"])
    assert ended.value.code == 2


def test_a_missing_repository_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(100):
        (pictures / f"{seed}.jpg").write_bytes(jpeg(seed, 40, 30))
    words = ("--repository", tmp_path / "nowhere", "--pictures", pictures, "--folder", tmp_path / "work")
    assert command.main(list(map(str, words))) == 1
    line = f"make faults: no repository in {tmp_path}/nowhere: run `make export`\n"
    assert capsys.readouterr().err == line
