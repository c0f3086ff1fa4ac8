"""Sequences that come with the kind: 300 walks over the numbers 0 to 10, whose class is the size of the steps."""

from pathlib import Path

import numpy as np
from selfsup.blocks.sequence import SequenceData

from selfsup.data.source import Samples, Source, Watched

COUNT, LENGTH, NUMBERS = 300, 8, 11


def listing(_data: SequenceData, _scratch: Path) -> Source:
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % 3
    start = rng.integers(0, NUMBERS, (COUNT, 1))
    slips = np.where(rng.random((COUNT, LENGTH)) < 0.1, rng.integers(0, NUMBERS, (COUNT, LENGTH)), 0)
    walks = (start + (labels[:, None] + 1) * np.arange(LENGTH) + slips) % NUMBERS
    names = [f"{number:03d}.txt" for number in range(COUNT)]
    return Source(["ones", "twos", "threes"], {"train": Samples(names, labels, walks)}, _read)


def watched(_data: SequenceData) -> Watched:
    return Watched(None, why_not="steps come with the kind")


def _read(walk: np.ndarray) -> bytes:
    return " ".join(map(str, walk.tolist())).encode()
