"""Memory that was freed is kept for the next step, where the C library can be told so."""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep what the process frees instead of giving it back to the system; elsewhere nothing happens.

    Every batch asks for the same large blocks, and the first touch of each page of a fresh block costs about as much as
    the work on it. Settings of the environment go first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, setting, value in (
        ("MALLOC_MMAP_THRESHOLD_", _MMAP_THRESHOLD, 2**30),
        ("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, 2**31 - 1),
    ):
        if mallopt is not None and name not in os.environ:
            mallopt(setting, value)
