"""Seeded, stratified choices of samples: which are held out, and which a limit keeps.

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
    """Bool [N]: the `share` of each class to hold out, rounded, at least one sample a class.

    Labels int64 [N]; samples without one (-1) are held out only when no sample has a label: a held-out split is for
    figures, and these need labels.
    """
    rank, size = _rank(labels, keys)
    chosen = rank < np.maximum(1, np.floor(size * share + 0.5))
    return chosen & (labels >= 0) if (labels >= 0).any() else chosen


def kept(labels: np.ndarray, keys: np.ndarray, limit: int) -> np.ndarray:
    """Bool [N]: `limit` samples in which each class has its share to within one; a smaller limit keeps a subset."""
    rank, size = _rank(labels, keys)
    chosen = np.zeros(len(labels), bool)
    chosen[np.lexsort((keys, (rank + 0.5) / size))[:limit]] = True
    return chosen
