"""Pictures, and a cluster of three nodes on this machine that the tests of a module share."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bulk.object_store import object_store
from tests.serving.tiny import jpeg

COMMAND = Path(sys.executable).with_name("alexnet-triton")
PICTURES = 60


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures in two folders, two files that are no pictures, and one that no one asks for."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        path = folder / ("ab"[number % 2]) / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    (folder / "a/cut.jpg").write_bytes(jpeg(0)[:700])
    (folder / "b/no.png").write_bytes(b"no picture")
    (folder / "b/notes.txt").write_text("not asked for")
    return folder


@pytest.fixture(scope="module")
def store(pictures: Path) -> Iterator[str]:
    """The address of an S3 server on this machine with the pictures in the bucket `photos`."""
    with object_store({"photos": pictures}) as address:
        yield address


@pytest.fixture(scope="module")
def cluster(store: str) -> Iterator[Any]:
    """A Ray cluster of three nodes; its processes find the S3 server."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    for name, value in s3_environment(store).items():
        patch.setenv(name, value)
    # A node that is gone is missed after a second, not after fifteen; one that is busy has ten seconds for an answer.
    health = {"health_check_initial_delay_ms": 5000, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
    node = {"num_cpus": 1, "include_log_monitor": False}
    head = {**node, "no_monitor": True, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": health})
    try:
        for _ in range(2):
            made.add_node(**node, object_store_memory=100 * 2**20)
        yield made
    finally:
        made.shutdown()
        patch.undo()


def s3_environment(address: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true", "RAY_USAGE_STATS_ENABLED": "0"}


def start(*words: object, **settings: Any) -> "subprocess.Popen[str]":
    """The command in a process of its own, which it leads."""
    command = [str(COMMAND), "bulk", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def bulk(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    process = start(*words, env={**os.environ, **environment})
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rows(output: Path) -> list[dict[str, Any]]:
    """An output as any reader of Parquet sees it."""
    table: pa.Table = pq.read_table(output)
    return table.to_pylist()
