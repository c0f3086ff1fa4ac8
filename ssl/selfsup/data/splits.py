"""Seeded, stratified choices of samples and of groups: which are held out, and which a limit keeps.

Each sample's random number depends on (seed, use, its number in the source) alone.
"""

import zlib

import numpy as np


def random_keys(seed: int, use: str, samples: int) -> np.ndarray:
    """One random uint64 a sample, [N], from a counter-based generator: the n-th depends on (seed, use, n) only."""
    return np.random.Philox(key=[seed, zlib.crc32(use.encode())]).random_raw(samples)


def _rank(labels: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's place in the random order of its class, and the size of its class, int64 [N] both."""
    order = np.lexsort((keys, labels))
    _, start, inverse, count = np.unique(labels[order], return_index=True, return_inverse=True, return_counts=True)
    rank, size = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - start[inverse]
    size[order] = count[inverse]
    return rank, size


def held_out(labels: np.ndarray, keys: np.ndarray, share: float) -> np.ndarray:
    """Bool [N]: the `share` of each class to hold out, rounded, at least one sample per class.

    Labels int64 [N]; samples without one (-1) are held out only when no sample has a label: a held-out split is for
    figures, and these need labels.
    """
    rank, size = _rank(labels, keys)
    chosen = rank < np.maximum(1, np.floor(size * share + 0.5))
    return chosen & (labels >= 0) if (labels >= 0).any() else chosen


def places(labels: np.ndarray, groups: np.ndarray | None, classes: int) -> np.ndarray:
    """How many splits each class can be in: its groups, or without groups its samples. int64 [classes]"""
    if groups is not None:
        labels = np.unique(np.stack([labels, groups]), axis=1)[0]
    return np.bincount(labels[labels >= 0], minlength=classes)


def held_out_groups(labels: np.ndarray, keys: np.ndarray, share: float, groups: np.ndarray, spare: int) -> np.ndarray:
    """Bool [N]: whole groups that hold out about the `share` of each class, at least one group of a class.

    Labels and groups are int64 [N]. Groups are considered in a random order, and a group is held out when this moves
    the classes nearer to their shares. The distance is the sum over classes of |held - wanted| / wanted. Then each
    class that has nothing held out gets the group that does least harm. Every class keeps at least `spare` groups that
    are not held out, so a class of fewer than `spare` + 1 groups has none held out. Groups without a labelled sample
    are held out only when no sample has a label.
    """
    labels = labels if (labels >= 0).any() else np.zeros_like(labels)
    numbers, group = np.unique(groups, return_inverse=True)
    first = np.full(len(numbers), np.iinfo(np.uint64).max, np.uint64)  # a group's key is the least of its samples'
    np.minimum.at(first, group, keys)
    used = labels >= 0
    pairs, counts = np.unique(np.stack([group[used], labels[used]]), axis=1, return_counts=True)
    ends = np.searchsorted(pairs[0], np.arange(len(numbers) + 1))
    size = np.bincount(labels[used])
    wanted, found = np.maximum(1, np.floor(size * share + 0.5)), np.zeros(len(size), np.int64)
    left = np.bincount(pairs[1], minlength=len(size))  # groups of a class that are not held out
    chosen = np.zeros(len(numbers), bool)

    def gain(number: int) -> float:
        """How much nearer the classes come to their shares; minus infinity if a class would keep too few groups."""
        of = slice(ends[number], ends[number + 1])
        own, new = pairs[1][of], counts[of]
        if not len(own) or chosen[number] or (left[own] <= spare).any():
            return -np.inf
        before, after = np.abs(found[own] - wanted[own]), np.abs(found[own] + new - wanted[own])
        return float(((before - after) / wanted[own]).sum())

    def take(number: int) -> None:
        of = slice(ends[number], ends[number + 1])
        found[pairs[1][of]] += counts[of]
        left[pairs[1][of]] -= 1
        chosen[number] = True

    for number in np.argsort(first, kind="stable").tolist():
        if gain(number) > 0:
            take(number)
    for label in np.flatnonzero((found == 0) & (size > 0)).tolist():
        own = pairs[0][pairs[1] == label]
        best = max(own[np.argsort(first[own], kind="stable")].tolist(), key=gain)
        if found[label] == 0 and gain(best) > -np.inf:
            take(best)
    return chosen[group]


def kept(labels: np.ndarray, keys: np.ndarray, limit: int) -> np.ndarray:
    """Bool [N]: `limit` samples in which each class has its share to within one; a smaller limit keeps a subset."""
    rank, size = _rank(labels, keys)
    chosen = np.zeros(len(labels), bool)
    chosen[np.lexsort((keys, (rank + 0.5) / size))[:limit]] = True
    return chosen
