"""Memory that a CPU run has freed stays with the process, instead of going back to the kernel and coming again."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to reuse large freed blocks; True where that worked.

    By default each large activation is mapped afresh, and the kernel zeroes its pages at the first touch: on two
    cores that took about 40% of a forward pass (docs/log.md). Other systems and C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_THRESHOLD, 1 << 30), mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1), mallopt(M_ARENA_MAX, 1)])
