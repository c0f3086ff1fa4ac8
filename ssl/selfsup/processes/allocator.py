"""Keep freed memory in the process for the next step, if the C library allows it."""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system. Does nothing with other C libraries.

    Every batch allocates the same large blocks, and the first access to each page of a new block costs about as much as
    the work on it. Settings in the environment take precedence.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, setting, value in (
        ("MALLOC_MMAP_THRESHOLD_", _MMAP_THRESHOLD, 2**30),
        ("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, 2**31 - 1),
    ):
        if mallopt is not None and name not in os.environ:
            mallopt(setting, value)
