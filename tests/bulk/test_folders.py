"""Lists of inputs, the folder of results, and what is refused: without Ray."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alexnet_triton.bulk.command import main
from alexnet_triton.bulk.inputs import BulkError, InputError, find_inputs, read_inputs, read_list, write_list
from alexnet_triton.bulk.output import BulkSettings, OutputFolder, open_output
from alexnet_triton.bulk.stages import ANSWER_SCHEMA, TritonStage, answer
from alexnet_triton.client import Classifier
from alexnet_triton.serving.server import Server
from tests.bulk.conftest import PICTURES, s3_environment
from tests.serving.tiny import jpeg, publication, publish


def settings(folder: Path, **others: object) -> BulkSettings:
    given = {"input": str(folder), "folder": "", "column": None, "model_version": "1", "model": "m", "top": 5}
    return BulkSettings(**{**given, "rows_per_file": 10, **others})  # type: ignore[arg-type]


def answers(numbers: range) -> pa.Table:
    return pa.Table.from_pylist([answer(number, [], "none", "1") for number in numbers], schema=ANSWER_SCHEMA)


def parquet(file: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=4, compression="none", use_dictionary=False)
    return file


def listed(argument: object, column: str | None = None) -> list[str]:
    return [path for path, _, _ in find_inputs(str(argument), column)]


KILLED_WHILE_IT_LOADS = """
import os, sys, types
from pathlib import Path
from alexnet_triton.bulk import stages
from alexnet_triton.serving import plan_engine

def load_engine(folder, config):
    assert (folder / "model.onnx").read_bytes() == b"a network"
    os.kill(os.getpid(), 9)

sys.modules["ray"] = types.SimpleNamespace(get=lambda reference: reference)
plan_engine.load_engine = load_engine
stages._load(stages.Model("1", Path("model.onnx"), "", 227, (), None), b"a network")
"""


def test_a_process_that_ray_kills_while_it_loads_leaves_no_network(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_LOADS], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_a_glob_and_a_file(pictures: Path) -> None:
    everything = listed(pictures)
    assert len(everything) == PICTURES + 2
    assert everything == sorted(everything)
    assert listed(pictures / "b" / "0*.jpg") == [path for path in everything if "/b/0" in path]
    assert listed(pictures / "a/00.jpg") == [str(pictures / "a/00.jpg")]


def test_objects_of_a_store(pictures: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment(store).items():
        monkeypatch.setenv(name, value)
    here = [path.replace(str(pictures), "s3://photos") for path in listed(pictures)]
    assert listed("s3://photos") == here
    assert listed("s3://photos/b/0*.jpg") == [path for path in here if "/b/0" in path]
    assert listed("s3://photos/a/00.jpg") == ["s3://photos/a/00.jpg"]
    with pytest.raises(InputError, match="s3://photos/c: no such file or folder"):
        listed("s3://photos/c")


def test_a_column_of_paths_counts_from_its_file(tmp_path: Path) -> None:
    file = parquet(tmp_path / "list.parquet", path=["a.jpg", "/b.jpg", "s3://c/d.jpg"], size=[1, 2, 3])
    assert listed(file) == [str(tmp_path / "a.jpg"), "/b.jpg", "s3://c/d.jpg"]


def test_a_column_of_bytes_is_read_row_by_row(tmp_path: Path) -> None:
    images = [jpeg(number) for number in range(10)]
    file = parquet(tmp_path / "list.parquet", image=[*images], path=[f"name {number}" for number in range(10)])
    write_list(str(file), None, tmp_path / "list")
    rows = read_list(tmp_path / "list")
    assert rows.column("path").to_pylist() == [f"name {number}" for number in range(10)]
    for start, stop in ((0, 10), (3, 9), (9, 10)):  # across the groups of rows
        assert list(read_inputs(rows.slice(start, stop - start), "")) == images[start:stop]


def test_a_damaged_group_of_rows_is_errors_of_its_rows(tmp_path: Path) -> None:
    images = [jpeg(number) for number in range(10)]
    file = parquet(tmp_path / "list.parquet", bytes=[*images])
    content = bytearray(file.read_bytes())
    middle = content.find(images[4])  # the first row of the second group, behind the header of its page
    content[middle - 30 : middle] = b"\xff" * 30
    file.write_bytes(content)
    write_list(str(file), None, tmp_path / "list")
    found = list(read_inputs(read_list(tmp_path / "list"), ""))
    assert len(found) == 10
    assert found[:4] == images[:4]
    assert all(str(each).startswith("damaged Parquet file: ") for each in found[4:])


def test_running_servers_answer_in_place_of_the_network(tiny_server: Server, pictures: Path) -> None:
    """Rows as a cluster's clients get them; the long tests have the cluster."""
    paths = [str(pictures / name) for name in ("a/00.jpg", "a/cut.jpg", "absent.jpg", "b/01.jpg")]
    none = pa.nulls(4, pa.string())
    rows = pa.table({"path": paths, "file": none, "row": pa.nulls(4, pa.int64()), "number": [7, 8, 9, 10]})
    url = f"grpc://{tiny_server.grpc_address}"
    (table,) = TritonStage([url], "1", "", 5)(rows)
    found = table.to_pylist()
    assert [row["number"] for row in found] == [7, 8, 9, 10]
    assert [bool(row["error"]) for row in found] == [False, True, True, False]
    with Classifier(url) as classifier:
        for row, path in ((found[0], paths[0]), (found[3], paths[3])):
            expected = classifier.classify(path)
            assert [each["label"] for each in row["top"]] == [each.label for each in expected.top]
            assert (row["label"], row["model_version"]) == (expected.top[0].label, expected.version)
    with pytest.raises(BulkError, match="changed from version 2 to 1"):
        next(TritonStage([url], "2", "", 5)(rows))


def test_a_part_appears_when_it_is_whole(pictures: Path, tmp_path: Path) -> None:
    with open_output(tmp_path / "out", settings(pictures)) as output:
        assert output.missing() == list(range(7))
        for numbers in (range(12, 20), range(60, 62), range(10, 12), range(0, 9)):
            output.add(answers(numbers))
        assert output.missing() == [0, 2, 3, 4, 5]
        table = pq.read_table(output.file(1))
        assert table.column("path").to_pylist() == listed(pictures)[10:20]
        assert output.count().errors == {"none": 12}


def test_a_continued_output_keeps_its_list(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(0))
    with open_output(tmp_path / "out", settings(folder)) as output:
        output.add(answers(range(1)))
    (folder / "0.jpg").write_bytes(jpeg(0))
    with open_output(tmp_path / "out", settings(folder)) as output:
        assert output.missing() == []
        assert output.inputs.num_rows == 1


def test_a_list_without_settings_is_made_again(pictures: Path, tmp_path: Path) -> None:
    """The run that made it was killed, and another command may follow."""
    (tmp_path / "out").mkdir()
    write_list(str(pictures / "a"), None, tmp_path / "out/_inputs.arrow")
    with open_output(tmp_path / "out", settings(pictures)) as output:
        assert output.inputs.num_rows == PICTURES + 2


def test_one_run_at_a_time(pictures: Path, tmp_path: Path) -> None:
    with (
        open_output(tmp_path / "out", settings(pictures)),
        pytest.raises(InputError, match="another run is writing it"),
        open_output(tmp_path / "out", settings(pictures)),
    ):
        pass


def write_output(pictures: Path, output: Path, **others: object) -> OutputFolder:
    with open_output(output, settings(pictures, **others)) as made:
        return made


def test_what_cannot_be_is_one_line(
    pictures: Path, tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    parquet(tmp_path / "numbers.parquet", size=[1, 2], name=["a", "b"])
    write_output(pictures, tmp_path / "other", model_version="7")
    (tmp_path / "foreign").mkdir()
    parquet(tmp_path / "foreign/a.parquet", size=[1])
    output, repository = ("--output", tmp_path / "out"), ("--repository", tiny_repository)
    refused: list[tuple[tuple[object, ...], int, str]] = [
        ((tmp_path / "absent", *output, *repository), 2, "absent: no such file or folder"),
        ((tmp_path / "empty", *output, *repository), 2, "empty: no images"),
        ((tmp_path / "broken.parquet", *output, *repository), 2, "damaged Parquet file"),
        ((tmp_path / "numbers.parquet", *output, *repository), 2, "no column path or bytes or image"),
        ((tmp_path / "numbers.parquet", *output, *repository, "--column", "size"), 2, "no column size"),
        ((pictures, "--output", tmp_path / "other", *repository), 2, "another folder"),
        ((pictures, "--output", tmp_path / "foreign", *repository), 2, "holds Parquet files of something else"),
        ((pictures, "--output", tmp_path / "broken.parquet", *repository), 2, "file exists"),
        ((pictures, *output, "--repository", tmp_path / "absent"), 1, "build the repository"),
        ((pictures, *output, "--url", "http://127.0.0.1:9"), 3, "127.0.0.1:9"),
        ((pictures, *output, *repository, "--address", "127.0.0.1:9"), 3, "no Ray cluster"),
    ]
    for words, code, text in refused:
        assert main(list(map(str, words))) == code, words
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("alexnet-triton bulk: ")
        assert text in line


def test_an_output_of_another_version_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, output = tmp_path / "repository", tmp_path / "out"
    publish(repository, publication(tmp_path))
    words = [str(pictures), "--output", str(output), "--repository", str(repository), "--address", "127.0.0.1:9"]
    assert main(words) == 3  # begun, and no cluster
    assert json.loads((output / "_settings.json").read_text())["model_version"] == "1"
    publish(repository, publication(tmp_path, seed=1))
    capsys.readouterr()
    assert main(words) == 2
    assert "was begun with model version 1, not 2; give another folder" in capsys.readouterr().err
