"""The longest wait is written into every queue, and a publication keeps what was tuned."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alexnet_triton.common.files import write_json
from alexnet_triton.export import publish
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.settings import SIZES, TUNED, TunedSettings
from alexnet_triton.serving.repository import VARIANTS, Repository, instance_count
from tests.export.test_publishers import write_model
from tests.serving.tiny import publication
from tests.serving.tiny import publish as publish_tiny

TUNING = TunedSettings(decoders=3, networks=4, threads=2, batch=8, delay_us=1000)


def waits(repository: Path) -> set[int]:
    """The bound of every queue of every variant, in microseconds."""
    configs = [config for name in VARIANTS for config in Repository.open(repository, name).configs.values()]
    queues = [config.dynamic_batching for config in configs if config.HasField("dynamic_batching")]
    assert len(queues) == 2 * len(VARIANTS)
    return {queue.default_queue_policy.default_timeout_microseconds for queue in queues}


@pytest.mark.parametrize(
    ("variable", "words", "expected"),
    [("", [], 2_400_000), ("1.5", [], 1_500_000), ("1.5", ["--max-wait", "0.25"], 250_000)],
)
def test_the_longest_wait(
    variable: str, words: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_WAIT", variable)
    assert publish.main([str(write_model(tmp_path)), "--repository", str(tmp_path / "built"), *words]) == 0
    assert waits(tmp_path / "built") == {expected}


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e-9", "7200"])
def test_no_wait_of_this_world(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, words in ((value, []), ("", [f"--max-wait={value}"])):
        monkeypatch.setenv("MAX_WAIT", variable)
        with pytest.raises(SystemExit) as end:
            publish.main([str(tmp_path / "model.onnx"), *words])
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.count("\n") == 1
        assert f"--max-wait: {value!r}: give seconds from 0.001 to 3600" in error


@pytest.mark.parametrize("cores", SIZES)
def test_processes_and_threads_follow_the_cores(cores: int, tmp_path: Path) -> None:
    publish_tiny(tmp_path / "built", publication(tmp_path))
    configs = Repository.open(tmp_path / "built", f"cpu-{cores}").configs
    network, decoder = configs["alexnet"], configs["preprocess"]
    threads = int(network.parameters["threads"].string_value)
    assert 0.8 * cores <= instance_count(network) * threads <= cores
    assert instance_count(network) <= 24
    assert 0.7 * cores <= instance_count(decoder) <= cores
    queues = [config.dynamic_batching.default_queue_policy.max_queue_size for config in (network, decoder)]
    assert queues == [1024 * cores] * 2
    batches = [list(config.dynamic_batching.preferred_batch_size) for config in (network, decoder)]
    assert batches == ([[8], [8]] if cores == 1 else [[], []])


def test_what_was_tuned_on_another_size_leaves_this_one(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish_tiny(repository, publication(tmp_path, 0))
    write_json(repository / TUNED, asdict(replace(TUNING, cores=8)))
    publish_tiny(repository, publication(tmp_path, 1))
    counts = {name: instance_count(Repository.open(repository, name).configs["alexnet"]) for name in ("cpu-4", "cpu-8")}
    assert counts == {"cpu-4": 4, "cpu-8": TUNING.networks}


def test_a_tuned_batch_of_one_core_is_all_that_holds(tmp_path: Path) -> None:
    repository = tmp_path / "built"
    write_json(repository / TUNED, asdict(replace(TUNING, batch=4, cores=1)))
    publish_tiny(repository, publication(tmp_path, 0))
    for name in ("preprocess", "alexnet"):
        config = Repository.open(repository, "cpu-1").configs[name]
        assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (4, [])


def test_what_was_tuned_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet_triton.serving.repository.usable_cores", lambda: 2)
    repository = tmp_path / "built"
    publish_tiny(repository, publication(tmp_path, 0))
    write_json(repository / TUNED, asdict(TUNING))
    publish_tiny(repository, publication(tmp_path, 1))
    configs = Repository.open(repository, "cpu").configs
    network = configs["alexnet"]
    assert {config.max_batch_size for config in configs.values()} == {TUNING.batch}
    assert (instance_count(configs["preprocess"]), instance_count(network)) == (TUNING.decoders, TUNING.networks)
    assert network.parameters["threads"].string_value == str(TUNING.threads)
    assert network.dynamic_batching.max_queue_delay_microseconds == TUNING.delay_us
    assert instance_count(Repository.open(repository, "gpu").configs["alexnet"]) == 2  # of another machine


@pytest.mark.parametrize("text", ["{", '{"decoders": 1}', '{"decoders": "many"}', "[]"])
def test_damaged_settings_are_one_line(text: str, tmp_path: Path) -> None:
    repository = tmp_path / "built"
    publish_tiny(repository, publication(tmp_path, 0))
    (repository / TUNED).write_text(text)
    with pytest.raises(
        PublishError, match=r"settings\.json: damaged .*; write it with alexnet-triton tune, or remove it"
    ):
        publish_tiny(repository, publication(tmp_path, 1))
