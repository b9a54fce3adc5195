"""Memory of the CPU's tensors: keep what was freed instead of returning it to the system."""

from __future__ import annotations

import contextlib
import ctypes
import platform

# Parameters of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1
LARGE_BYTES = 1 << 24  # of an image, from which on freed memory is given back between the steps of a case
GROWTH_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc serve large tensors from a heap that does not shrink; True where that could be set.

    By default glibc maps every large block anew and unmaps it when it is freed, so that each activation of each
    training step is first zeroed page by page by the kernel. On machines where a page fault is slow (virtual ones
    above all) that took as long as the convolutions themselves. The process keeps its peak memory instead, which a
    training reaches in every step and a prediction in every case. Other allocators and systems are left as they are; a
    GPU does not need it.
    """
    if not _has_glibc():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, GROWTH_BYTES))
    return sum(mallopt(name, value) for name, value in wanted) == len(wanted)  # all three are set, whatever one says


def return_freed_memory() -> None:
    """Give all that is free back to the system, where `keep_freed_memory` kept it: between steps of large cases.

    What one step leaves is of no use to another that runs on another thread, from whose heap it was not taken.
    """
    if _has_glibc():
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
