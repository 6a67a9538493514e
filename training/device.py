"""What this machine computes with, and how."""

import ctypes
from contextlib import AbstractContextManager

import torch
from torch import nn

# glibc's mallopt(3) parameters.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device() -> torch.device:
    """This process's CUDA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to a device, its convolutions' weights in the channels-last order that they compute in."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def has_bf16(device: torch.device) -> bool:
    """Does it multiply bfloat16 matrices in hardware?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def pick_precision(asked: str, device: torch.device) -> str:
    """A key of PRECISIONS: `asked`, or for "auto" the fastest of 16 bits in hardware, float32 where there is none."""
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
    """Have glibc keep large freed blocks, rather than return each to the system and fault it in again.

    Activations of tens of megabytes come and go at every step; the page faults cost a quarter of it.
    Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)
