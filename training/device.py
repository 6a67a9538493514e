"""What this process computes with: device, precision, memory, and the other processes of its run."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

# glibc's mallopt(3) parameters.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device() -> torch.device:
    """This process's CUDA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to a device, with its convolutions' weights in channels-last order."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def pick_precision(asked: str, device: torch.device) -> str:
    """A key of PRECISIONS: `asked`, or for "auto" the fastest 16-bit type of the hardware, else float32."""
    if asked != "auto":
        return asked
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def mixed_precision(device: torch.device, precision: str = "auto") -> AbstractContextManager[None]:
    """Autocast to a precision, a key of PRECISIONS or "auto"."""
    dtype = PRECISIONS[pick_precision(precision, device)]
    return torch.autocast(device.type, dtype if dtype.itemsize == 2 else None, enabled=dtype.itemsize == 2)


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of returning each to the system.

    Every step allocates and frees activations of tens of megabytes; page faults would cost a quarter of its time.
    Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)


@dataclass(frozen=True)
class Group:
    """This process among those of the run. A single process needs no torchrun."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        return DistributedDataParallel(network) if self.world > 1 else network

    def of_first(self, values: list[float]) -> list[float]:
        """The first process's numbers, in all processes."""
        return self._exchange(values, lambda tensor: distributed.broadcast(tensor, src=0))

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all processes, in all processes."""
        return self._exchange(values, distributed.all_reduce)

    def _exchange(self, values: list[float], operation: Callable[[Tensor], object]) -> list[float]:
        if self.world == 1:
            return values
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        operation(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Each process's value by rank, in all processes."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values


@contextmanager
def join() -> Iterator[Group]:
    """Join the other processes if torchrun started this one: gloo between CPUs, nccl between GPUs.

    torchrun sets RANK, WORLD_SIZE and LOCAL_RANK.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Group(distributed.get_rank(), world)
    finally:
        gc.collect()  # DistributedDataParallel is in a cycle and holds the group, whose threads would abort the exit
        distributed.destroy_process_group()


def leave(code: int) -> int:
    """End a process of torchrun's at once, when all is written; returns the code where there is no other process.

    gloo's threads abort an orderly end now and then ("terminate called without an active exception").
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
