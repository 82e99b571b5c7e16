"""How a CPU's memory is kept between forwards."""

from __future__ import annotations

import ctypes
import os

# <malloc.h>. The threshold is the largest that the GNU C library takes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30
_GROWS_BY = 64 << 20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors leave, up to a gigabyte, for the next ones.

    The GNU C library gives large blocks back to the system, and every forward on a CPU then begins with
    the system's zeroing of the same pages again: a tenth of the time of a small model. Results
    do not change. Meant for programs, which own their process; a library leaves the choice to them.

    Returns:
        Whether it took effect; False with other C libraries.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1
        for name, value in (
            (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
            (_M_TRIM_THRESHOLD, _KEPT),
            (_M_TOP_PAD, _GROWS_BY),
        )
    )
