"""Memory that is free on a device or stays with the process."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h


@cache
def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks; True if that worked.

    By default each large activation is mapped afresh, and the kernel zeroes its pages at the first touch: on two
    cores that took about 40% of a forward pass (docs/log.md). Other systems and C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_THRESHOLD, 1 << 30), mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1), mallopt(M_ARENA_MAX, 1)])


def free_memory(device: torch.device) -> int:
    """Bytes that a process may still allocate on the device, as far as the driver or the kernel can tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
