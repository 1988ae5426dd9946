"""Memory of runs on CPUs."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
NEVER = 2**31 - 1
LARGEST_THRESHOLD = 2**25  # bytes; glibc refuses more
PAD = 2**26  # bytes


def keep_freed_memory() -> bool:
    """Have the C library keep the memory of tensors that are gone for those to come, until the process ends.

    By default it returns large pieces to the system at once, and the system hands them out again page by page, zeroed.
    A training step frees and allocates gigabytes of the same sizes: keeping them took a quarter off the step of
    ``benchmarks/bench_step.py`` on a virtual machine, at the same peak.

    Returns:
        Whether it was possible: with glibc it is, on other systems nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    options = {M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: PAD, M_MMAP_THRESHOLD: LARGEST_THRESHOLD}
    done = [mallopt(option, value) for option, value in options.items()]
    return all(done)
