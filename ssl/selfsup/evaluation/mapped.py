"""Arrays made of features, which may be larger than memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import numpy as np

SMALL = 1 << 26  # numbers that are kept in memory, 256 MiB


def gathered(blocks: Iterable[np.ndarray], rows: int, width: int) -> np.ndarray:
    """The `blocks` of rows one after the other, float32 [rows width].

    More than `SMALL` numbers are written to a file without a name in the working folder, which is mapped for reading:
    the system drops its pages where memory is short, and the file is gone with the array. Raises `OSError`: disk full.
    """
    if rows * width <= SMALL:
        return np.concatenate([np.empty((0, width), np.float32), *blocks])
    with tempfile.TemporaryFile(dir=".") as file:
        try:
            for block in blocks:
                file.write(np.ascontiguousarray(block, np.float32).data)
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, "a temporary file of the working folder") from error
        return np.memmap(file, np.float32, "r", shape=(rows, width))
