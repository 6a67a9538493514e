"""What a machine's own settings change in the published configurations: the longest wait, and what tuning found."""

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.export.errors import PublishError

MAX_WAIT_S = 2.4
TUNED = "settings.json"  # of a repository
# Numbers of cores that a publication writes configurations for; the source's own is for 2. The server takes the largest
# that the cores it may use are enough for.
SIZES = (1, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
MOST_NETWORKS = 24  # processes, each of which holds a compiled copy of the network; then they get more threads
DECODERS_A_CORE = 0.75  # decoding takes two fifths of the cores; processes that decode also wait
# One core decodes and runs the network by turns, so that a request waits for two batches after the queue. Batches of 8
# requests are no slower an image, and p99 of an overload is 2.8 s where it was 3.3. A request of 16 images stays whole.
ONE_CORE_BATCH = 8
QUEUE_A_CORE = 1024  # requests, at most, that wait for a model


@dataclass(frozen=True)
class TunedSettings:
    """What `alexnet-triton tune` found for the variant `cpu`; a publication keeps it."""

    decoders: int  # instances of `preprocess`
    networks: int  # instances of `alexnet`
    threads: int  # of each network
    batch: int  # the largest
    delay_us: int  # how long the first image of a batch waits for more
    cores: int = 0  # of the configuration that was tuned: one of `SIZES`, 0 for the source's

    def apply(self, model: str, config: ModelConfig) -> None:
        """Change a configuration of one of the source's models, in place."""
        config.max_batch_size = self.batch
        if config.HasField("dynamic_batching"):
            config.dynamic_batching.ClearField("preferred_batch_size")  # Triton takes none above the largest
        if model == "preprocess":
            config.instance_group[0].count = self.decoders
        elif model == "alexnet":
            config.instance_group[0].count = self.networks
            config.parameters["threads"].string_value = str(self.threads)
            config.dynamic_batching.max_queue_delay_microseconds = self.delay_us


@dataclass(frozen=True)
class MachineSettings:
    """What publishing puts into the configurations of the source."""

    tuned: TunedSettings | None
    max_wait_s: float = MAX_WAIT_S  # in each queue

    def fit(self, model: str, file: str, config: ModelConfig) -> None:
        """Change `file` of one of the source's models, in place; the variants share that of `classify`."""
        for cores in SIZES:
            if file == file_for_cores(cores):
                _scale(model, config, cores)
        if self.tuned and (file == file_for_cores(self.tuned.cores) or model == "classify"):
            self.tuned.apply(model, config)
        if config.HasField("dynamic_batching"):
            policy = config.dynamic_batching.default_queue_policy
            policy.default_timeout_microseconds = round(self.max_wait_s * 1e6)


def file_for_cores(cores: int) -> str:
    """The configuration, in a model's folder, that a server takes on so many cores of `SIZES`; 0 is the source's."""
    return f"configs/cpu-{cores}.pbtxt" if cores else "configs/cpu.pbtxt"


def _scale(model: str, config: ModelConfig, cores: int) -> None:
    """Change a configuration of one of the source's models for so many cores, in place."""
    threads = math.ceil(cores / MOST_NETWORKS)
    if model == "preprocess":
        config.instance_group[0].count = math.ceil(DECODERS_A_CORE * cores)
    elif model == "alexnet":
        config.instance_group[0].count = cores // threads
        config.parameters["threads"].string_value = str(threads)
    if cores == 1:
        config.dynamic_batching.preferred_batch_size[:] = [ONE_CORE_BATCH]
    config.dynamic_batching.default_queue_policy.max_queue_size = QUEUE_A_CORE * cores


def read_tuned(repository: Path) -> TunedSettings | None:
    """What was tuned on a repository; None where nothing was.

    Raises:
        PublishError: the file is damaged.
    """
    path = repository / TUNED
    if not path.is_file():
        return None
    try:
        given = TunedSettings(**json.loads(path.read_text()))
        if not all(isinstance(value, int) and value >= 0 for value in asdict(given).values()):
            raise ValueError("not whole numbers")
    except (ValueError, TypeError) as error:
        raise PublishError(f"{path}: damaged ({error}); write it with alexnet-triton tune, or remove it") from error
    return given


def add_max_wait(parser: argparse.ArgumentParser) -> None:
    """The option --max-wait."""
    text = f"a request that has waited so long is refused (default: MAX_WAIT, else {MAX_WAIT_S})"
    default = os.environ.get("MAX_WAIT") or str(MAX_WAIT_S)
    parser.add_argument("--max-wait", type=_wait, default=default, metavar="SECONDS", help=text)


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds from 0.001 to 3600")
    return seconds
