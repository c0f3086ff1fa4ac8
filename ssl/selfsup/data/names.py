"""Millions of file names in little memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Names(Sequence[str]):
    """File names as one block of bytes: a name takes its own length and 16 bytes, where a `str` takes 60 and more.

    A slice or an array of numbers returns a view on the same bytes; pickling copies only the selected names.
    """

    def __init__(self, names: Iterable[str]):
        block, ends = bytearray(), array("q", [0])
        for name in names:
            block += os.fsencode(name)
            ends.append(len(block))
        self._block, self._ends = block, np.array(ends)
        self._rows = np.arange(len(ends) - 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice | np.ndarray):
            part = Names(())
            part._block, part._ends, part._rows = self._block, self._ends, self._rows[which]
            return part
        row = self._rows[which]
        return os.fsdecode(bytes(self._block[self._ends[row] : self._ends[row + 1]]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self if len(self._rows) == len(self._ends) - 1 else Names(self))

    def readable(self) -> Names:
        """The names as text that can be written: bytes that are no UTF-8 become question marks."""
        try:
            self._block.decode()
        except UnicodeDecodeError:
            return Names(text(name) for name in self)
        return self


def text(name: str) -> str:
    """A file's name as text that can be written."""
    return os.fsencode(name).decode("utf-8", "replace")
