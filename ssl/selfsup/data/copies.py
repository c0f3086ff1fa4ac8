"""Samples that are there more than once: which are in two splits, which have two labels, and which one to keep.

Samples are compared by their decoded content and not by their files' bytes: images by their pixels at the store size.
What differs only in compression without loss, in metadata or in the name is the same to the network, and files of equal
bytes have equal content. A copy of an image that was saved again with loss (JPEG), resized or cropped is another image
here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selfsup.data.index import Copies

PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))
_ORDER = ("test", "validation", "train")  # in a source: of equal samples the first is kept


def digest(content: np.ndarray) -> bytes:
    """16 bytes that are equal for equal content, an array of any shape."""
    return hashlib.blake2b(content.tobytes(), digest_size=16, key=str(content.shape).encode()).digest()


@dataclass
class Part:
    """The samples of a split in the order of its shards: digests uint64 [N 2], labels int64 [N], the source's
    split that they are of, their numbers there and their places in the plan's split, both int64 [N]."""

    digests: np.ndarray
    labels: np.ndarray
    origin: str
    numbers: np.ndarray
    places: np.ndarray


@dataclass
class Found:
    """All samples that have an equal one, grouped: `start` has each set's first place in the arrays, int64 [sets]."""

    start: np.ndarray
    split: np.ndarray  # place in `names`
    labels: np.ndarray
    origin: np.ndarray  # place in `_ORDER`
    numbers: np.ndarray  # in the source's split
    place: np.ndarray  # in the plan's split
    names: list[str]  # of the splits


def find(samples: Mapping[str, Part]) -> Found:
    """The sets of equal samples. Memory: about 100 bytes per sample while sorting, of which 16 are digests."""
    names = list(samples)
    digests = np.concatenate([part.digests for part in samples.values()])
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal samples stay in the order of splits and places
    ordered = digests[order]
    same = np.concatenate([[False], (ordered[1:] == ordered[:-1]).all(1)])  # equal to the previous sample
    member = same | np.append(same[1:], False)
    order, start = order[member], np.flatnonzero(~same[member])

    def all_of(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(values)[order]

    parts = list(samples.values())
    lengths = [len(part.labels) for part in parts]
    return Found(
        start=start,
        split=all_of([np.full(length, i) for i, length in enumerate(lengths)]),
        labels=all_of([part.labels for part in parts]),
        origin=all_of([np.full(len(part.labels), _ORDER.index(part.origin)) for part in parts]),
        numbers=all_of([part.numbers for part in parts]),
        place=all_of([part.places for part in parts]),
        names=names,
    )


def count(found: Found, dropped: bool) -> Copies:
    """How many samples are copies, in whatever splits and with whatever labels, and whether all but one are dropped."""
    across = {}
    for one, other in PAIRS:
        in_one = _any(found, found.split == found.names.index(one))
        in_other = found.split == found.names.index(other)
        across[f"{one}/{other}"] = int((in_other & _spread(found, in_one)).sum())
    surplus = len(found.split) - len(found.start)
    return Copies(
        surplus=surplus,
        across={pair: samples for pair, samples in across.items() if samples},
        relabelled=int(_relabelled(found).sum()),
        dropped=surplus * dropped,
    )


def example(found: Found, one: str, other: str) -> tuple[int, int]:
    """The places in two splits of a sample that both have."""
    splits = [found.split == found.names.index(split) for split in (one, other)]
    both = _spread(found, _any(found, splits[0]) & _any(found, splits[1]))
    first = int(found.place[both & splits[1]].min())
    (at,) = np.flatnonzero(both & splits[1] & (found.place == first))
    own = np.searchsorted(found.start, at, "right") - 1
    return int(found.place[splits[0] & (_set(found) == own)][0]), first


def relabelled_example(found: Found) -> list[tuple[str, int]]:
    """The splits and places in them of two equal samples with different labels."""
    at = int(np.flatnonzero(_relabelled(found))[0])
    other = next(i for i in range(at + 1, len(found.labels)) if found.labels[i] not in (-1, found.labels[at]))
    return [(found.names[found.split[i]], int(found.place[i])) for i in (at, other)]


def surplus(found: Found) -> dict[str, np.ndarray]:
    """The samples to leave out so that one of each is left: numbers in each split of the source, int64.

    Kept is a sample of the source's test split before one of validation before one of train, a labelled one before
    one without label, and then the first.
    """
    order = np.lexsort((found.numbers, found.labels < 0, found.origin, _set(found)))
    left_out = order[np.setdiff1d(np.arange(len(order)), found.start)]  # the first of each set stays
    return {split: found.numbers[left_out[found.origin[left_out] == i]] for i, split in enumerate(_ORDER)}


def _set(found: Found) -> np.ndarray:
    """The number of each sample's set."""
    return np.repeat(np.arange(len(found.start)), np.diff(np.append(found.start, len(found.split))))


def _any(found: Found, samples: np.ndarray) -> np.ndarray:
    """Of each set whether it has one of `samples`."""
    return np.logical_or.reduceat(samples, found.start) if len(found.start) else np.zeros(0, bool)


def _spread(found: Found, sets: np.ndarray) -> np.ndarray:
    """Of each sample whether its set is one of `sets`."""
    return sets[_set(found)]


def _relabelled(found: Found) -> np.ndarray:
    """Of each sample whether it has a label and its set another one too."""
    if not len(found.start):
        return np.zeros(0, bool)
    high = np.maximum.reduceat(found.labels, found.start)
    low = np.minimum.reduceat(np.where(found.labels < 0, np.iinfo(np.int64).max, found.labels), found.start)
    return _spread(found, low < high) & (found.labels >= 0)
