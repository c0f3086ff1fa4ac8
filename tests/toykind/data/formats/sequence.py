"""Sequences: text files of whole numbers; `tokens` int32 [L] and `valid` int16 [] in a batch.

L is `data.sequence.length`. Tokens are numbers less the lowest of the set plus 1; 0 fills a sequence up. `valid` counts
the numbers.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image
from selfsup.blocks.sequence import SequenceData

from selfsup.config import Strict
from selfsup.data.format import Arrays, Signal, Taken, Unreadable, Unsettled

VERSION = 1


class Facts(Strict):
    """What a network's first layer needs."""

    lowest: int  # number of the set
    vocabulary: int  # tokens, 0 included
    shares: list[float]  # of the training numbers, by token


def read(file: bytes) -> list[int]:
    """The numbers in a file. Raises `Unreadable`."""
    try:
        words = file.decode("ascii").split()
        numbers = [int(word) for word in words]
    except ValueError as error:
        raise Unreadable(f"no whole numbers: {error}") from None
    if not numbers:
        raise Unreadable("no numbers")
    if max(map(abs, numbers)) >= 2**15:
        raise Unreadable("a number of more than 16 bits")
    return numbers


class Intake:
    """Stores files as they are. Numbers below 0 can be taken only when the lowest of the set is known."""

    def __init__(self, data: SequenceData, settled: int | None = None):
        self.settled, self.low, self.high = settled, 0, 0
        self.counts = Counter[int]()  # of the training numbers
        self.short, self.length = 0, data.length

    def take(self, file: bytes, name: str, training: bool) -> Taken:
        numbers = read(file)
        self.low, self.high = min(self.low, *numbers), max(self.high, *numbers)
        if self.settled is None and self.low < 0:
            raise Unsettled("numbers below 0")
        self.short += len(numbers) < self.length
        if training:
            self.counts.update(numbers[: self.length])
        return Taken(file, PurePosixPath(name).suffix.lower(), np.array(numbers, np.int32))

    def merge(self, other: "Intake") -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.counts += other.counts
        self.short += other.short

    def settle(self) -> int:
        return self.low

    def facts(self) -> tuple[Facts, list[str]]:
        low, total = self.settled or 0, self.counts.total()
        shares = [0.0, *(self.counts[number] / total for number in range(low, self.high + 1))]
        notes = [f"{self.short} sequences have fewer than {self.length} numbers."] if self.short else []
        return Facts(lowest=low, vocabulary=len(shares), shares=shares), notes


@dataclass(frozen=True)
class Decoder:
    """Numbers of a set whose lowest is `lowest`, cut or filled up to `length`."""

    length: int
    lowest: int

    @property
    def signals(self) -> dict[str, Signal]:
        return {"tokens": Signal((self.length,), np.int32), "valid": Signal((), np.int16)}

    def __call__(self, file: bytes) -> Arrays:
        numbers = np.array(read(file)[: self.length], np.int32) - self.lowest + 1
        tokens = np.zeros(self.length, np.int32)
        tokens[: len(numbers)] = numbers
        return {"tokens": tokens, "valid": np.array(len(numbers), np.int16)}


def decoder(data: SequenceData, facts: Facts) -> Decoder:
    return Decoder(data.length, facts.lowest)


def equality(_data: SequenceData) -> str:
    return "of equal numbers"


def thumbnail(sample: Arrays) -> Image.Image:
    """One column per number, brighter for higher ones."""
    row = np.minimum(sample["tokens"][: int(sample["valid"])] * 16, 255).astype(np.uint8)
    return Image.fromarray(np.tile(row, (8, 1))).resize((8 * len(row), 16), Image.Resampling.NEAREST)
