"""What `alexnet-triton bulk` gives: its rate beside the machine's bound and the client's, kills, and a second node.

    python docs/bulk.py --repository artifacts/imagenet/model_repository --images photos

`rate`: the bound (decode and network alone), the client on a server, and bulk, one after another; memory and processor
time are those of all its processes. `kills`: the driver, then a node, killed at random moments; the rows of each run
that ended are compared with the inputs. `nodes`: one node and two, each held to one core; the driver is on the first.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from alexnet_triton.common.command import Parser, finish, positive_int
from alexnet_triton.common.files import is_image, write_json
from alexnet_triton.common.provenance import describe_run
from alexnet_triton.loadtest.bench.bound import decode_and_network
from alexnet_triton.loadtest.bench.config import BenchConfig, prepare_images
from alexnet_triton.serving.server import Server

PROG = "bulk.py"
BIN = Path(sys.executable).parent
FOLDER_FILES = 1000
SAMPLE_S = 1.0
BOUND_S = 20.0
SMALL_FILES = ("--rows-per-file", "256")  # so that a kill finds some of them done
Figures = dict[str, Any]
STEPS = ("rate", "kills", "nodes")


def main(words: Sequence[str]) -> int:
    parser = Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="at least 100 photographs")
    parser.add_argument("--count", type=positive_int, default=100_000, help="hard links to them (default 100,000)")
    parser.add_argument("--kill-count", type=positive_int, default=10_000, help="files of the kills (default 10,000)")
    parser.add_argument("--kills", type=positive_int, default=10, help="of the driver, and of a node (default 10)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bulk"), help="working files, removed first")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    shutil.rmtree(options.folder, ignore_errors=True)
    functions = {"rate": measure_rate, "kills": measure_kills, "nodes": measure_nodes}
    found = {}
    for step in options.steps:
        found[step] = functions[step](options)
        print(step, *(f"  {name}: {value}" for name, value in found[step].items()), sep="\n", flush=True)
    if options.json:
        write_json(options.json, {**describe_run(("ray", "pyarrow", "numpy", "openvino")), **found})


def link_images(options: argparse.Namespace, count: int) -> Path:
    """A folder of `count` hard links to the photographs, a thousand in each folder below it."""
    images = sorted(path for path in options.images.rglob("*") if is_image(path))
    folder: Path = options.folder / f"links-{count}"
    for number in range(0 if folder.exists() else count):
        target = folder / f"{number // FOLDER_FILES:03}" / f"{number:07}.jpg"
        if number % FOLDER_FILES == 0:
            target.parent.mkdir(parents=True)
        _link(images[number % len(images)], target)
    return folder.absolute()


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # on another file system
        target.symlink_to(source.absolute())


# ---- the rate


def measure_rate(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of bound, client and bulk; bulk's memory and processor time."""
    config = BenchConfig(options.repository, options.folder / "bound", images=options.images, seconds=BOUND_S)
    prepare_images(config)
    links = link_images(options, options.count)
    bound = decode_and_network(config)
    client = _client_rate(options, links)
    report, usage = run_bulk(options, links, options.folder / "rate")
    again = decode_and_network(config)
    return {
        "bound_images_per_s": [round(bound, 1), round(again, 1)],
        "client_images_per_s": round(client, 1),
        "bulk_images_per_s": report["images_per_s"],
        "of_the_bound": round(report["images_per_s"] / ((bound + again) / 2), 3),
        **usage,
    }


def _client_rate(options: argparse.Namespace, links: Path) -> float:
    with Server(
        options.repository, http_port=0, grpc_port=0, metrics_port=0, log=options.folder / "server.log"
    ) as server:
        words = [BIN / "alexnet-classify", "--recursive", links, "--concurrency", "32", "--format", "json"]
        words += ["--url", f"grpc://{server.grpc_address}", "--output", options.folder / "client.jsonl"]
        start = time.perf_counter()
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        return options.count / (time.perf_counter() - start)


def run_bulk(
    options: argparse.Namespace, inputs: Path, output: Path, *more: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The command in a process of its own: its report, and what its processes used."""
    file = output.with_suffix(".json")
    with subprocess.Popen([*bulk_command(options, inputs, output), "--json", str(file), *more]) as process:
        usage = watch(process)
    if process.returncode:
        raise RuntimeError(f"bulk ended with {process.returncode}")
    report = json.loads(file.read_text())
    usage["core_ms_per_image"] = round(usage["processor_s"] / report["images"] * 1e3, 2)
    return report, usage


def bulk_command(options: argparse.Namespace, inputs: Path, output: Path) -> list[str]:
    """The words of the command."""
    words = [BIN / "alexnet-triton", "bulk", inputs, "--output", output, "--repository", options.repository]
    return list(map(str, words))


def watch(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Peak memory of a process and all below it in MiB, its growth over the second half, and processor seconds.

    Memory is the proportional share (PSS), so that what processes share counts once.
    """
    memory: list[float] = []
    seconds: dict[int, float] = {}
    while process.poll() is None:
        memory.append(_sample(process.pid, seconds))
        time.sleep(SAMPLE_S)
    middle = memory[len(memory) // 2 : -1] or memory
    third = max(1, len(middle) // 3)
    growth = sum(middle[-third:]) / third - sum(middle[:third]) / third
    return {
        "peak_mib": round(max(memory)),
        "growth_mib_over_second_half": round(growth),
        "processor_s": round(sum(seconds.values()), 1),
    }


def _sample(pid: int, seconds: dict[int, float]) -> float:
    total = 0.0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for each in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_full_info().pss / 2**20
                times = each.cpu_times()
                seconds[each.pid] = times.user + times.system
    return total


# ---- kills


def measure_kills(options: argparse.Namespace) -> dict[str, Any]:
    """Rows after the driver, and after a node, was killed again and again."""
    links = link_images(options, options.kill_count)
    random.seed(0)
    return {"driver": _kill_drivers(options, links), "node": _kill_nodes(options, links)}


def _kill_drivers(options: argparse.Namespace, links: Path) -> dict[str, Any]:
    """The command is killed and given again; once all inputs have their row, it begins anew."""
    output, killed, runs = options.folder / "killed-driver", 0, []
    words = [*bulk_command(options, links, output), *SMALL_FILES]
    while killed < options.kills:
        shutil.rmtree(output, ignore_errors=True)
        while not _ends_before(words, random.uniform(8, 25) if killed < options.kills else None):
            killed += 1
        runs.append(compare_rows(links, output))
    return {"kills": killed, "runs": runs}


def _ends_before(words: Sequence[str], seconds: float | None) -> bool:
    """Whether the command ends by itself within so many seconds, well; else it is killed."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            if process.wait(seconds):
                raise RuntimeError(f"bulk ended with {process.returncode}")
        except subprocess.TimeoutExpired:
            process.kill()
            return False
    return True


def _kill_nodes(options: argparse.Namespace, links: Path) -> dict[str, Any]:
    """The head has no CPU; of two nodes one is killed and replaced; once all inputs have their row, it begins anew."""
    output, killed, runs = options.folder / "killed-node", 0, []
    with cluster() as made:
        nodes = [made.add_node(num_cpus=1), made.add_node(num_cpus=1)]
        while killed < options.kills:
            shutil.rmtree(output, ignore_errors=True)
            words = [*bulk_command(options, links, output), *SMALL_FILES, "--address", made.address]
            with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(random.uniform(10, 25) if killed < options.kills else None)
                        break
                    made.remove_node(nodes.pop(0), allow_graceful=False)
                    nodes.append(made.add_node(num_cpus=1))
                    killed += 1
            if process.returncode:
                raise RuntimeError(f"bulk ended with {process.returncode} after {killed} kills")
            runs.append(compare_rows(links, output))
    return {"kills": killed, "runs": runs}


def compare_rows(links: Path, output: Path) -> dict[str, int]:
    """Inputs, rows, and how many inputs have none or several."""
    inputs = {str(path) for path in links.rglob("*.jpg")}
    rows = Counter(pq.read_table(output, columns=["path"]).column("path").to_pylist())
    twice = sum(count > 1 for count in rows.values())
    return {"inputs": len(inputs), "rows": rows.total(), "missing": len(inputs - rows.keys()), "twice": twice}


# ---- nodes


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine whose head does no work."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def measure_nodes(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second and core-milliseconds an image of one node and of two, each held to a core of its own."""
    links, cores, found = link_images(options, options.kill_count), sorted(os.sched_getaffinity(0))[:2], {}
    for count in (1, 2):
        with _held_to(cores[0]), cluster() as made:  # the head and the driver too
            for core in cores[:count]:
                with _held_to(core):
                    made.add_node(num_cpus=1)
            report, _ = run_bulk(options, links, options.folder / f"nodes-{count}", "--address", made.address)
        rate = report["images_per_s"]
        found[f"{count} nodes"] = {"images_per_s": rate, "core_ms_per_image": round(count * 1e3 / rate, 2)}
    found["times"] = round(found["2 nodes"]["images_per_s"] / found["1 nodes"]["images_per_s"], 2)
    return found


@contextlib.contextmanager
def _held_to(core: int) -> Iterator[None]:
    """What this thread starts runs on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [core])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
