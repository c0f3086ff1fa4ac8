"""Weighted k nearest neighbours by cosine similarity, of a bank that need not fit in memory.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv:1805.01978, section
3.4: each of the k nearest images of the bank votes for its class with weight exp(s / tau), s the cosine similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

K, TEMPERATURE = 20, 0.07
"""k and tau of a quick reading, such as the probe's during training. The protocol has separate parameters."""

_QUERIES, _BANK = 1024, 32768  # rows handled at once: memory does not grow with the number of images
_FIRST = 2048  # images of the bank that are handled first
_ROWS = 4096  # rows whose lengths are taken at once
_MATRIX = 1 << 25  # similarities held at once where all are needed, 128 MiB


def knn_accuracy(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of `queries` [Q D] classified right by `bank` [N D], in 0..1; samples with label -1 are left out.

    A k larger than the bank means the whole bank. NaN when either side has no labelled sample.
    """
    bank, bank_labels = bank[bank_labels >= 0], bank_labels[bank_labels >= 0]
    queries, query_labels = queries[query_labels >= 0], query_labels[query_labels >= 0]
    if not len(bank) or not len(queries):
        return float("nan")
    k = min(k, len(bank))
    return float((classify([bank], bank_labels, queries, [k], temperature)[k] == query_labels).mean())


def classify(
    banks: Sequence[np.ndarray], bank_labels: np.ndarray, queries: np.ndarray, ks: Sequence[int], temperature: float
) -> dict[int, np.ndarray]:
    """Predicted class of `queries` [Q D], int64 [Q], for every k; `bank_labels` int64 [N] runs over all `banks`."""
    predicted: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    classes = int(bank_labels.max()) + 1
    for similarity, index in _blocks(banks, queries, max(ks)):
        neighbours = bank_labels[index]
        for k in ks:
            predicted[k].append(vote(similarity[:, :k], neighbours[:, :k], classes, temperature))
    return {k: np.concatenate(parts) if parts else np.empty(0, np.int64) for k, parts in predicted.items()}


def vote(similarity: np.ndarray, neighbours: np.ndarray, classes: int, temperature: float) -> np.ndarray:
    """The class with most weight, int64 [Q], from similarities and labels [Q k], the most similar first."""
    # A common factor changes no vote and keeps exp from overflowing at a small temperature.
    weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)  # [Q k]
    rows = np.arange(len(similarity))[:, None] * classes
    votes = np.bincount((rows + neighbours).ravel(), weight.ravel(), minlength=len(similarity) * classes)
    return votes.reshape(-1, classes).argmax(axis=1)


def search(banks: Sequence[np.ndarray], queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarity float32 [Q k] and number in the joined banks int64 [Q k] of the nearest, nearest first."""
    similarity, index = zip(*_blocks(banks, queries, k), strict=True)
    return np.concatenate(similarity), np.concatenate(index)


def _blocks(banks: Sequence[np.ndarray], queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`search` block by block of queries, so that neither the bank nor the answers need fit in memory.

    Of equal similarities the lower number comes first. Blocks of the bank grow with what was seen, so that each has
    about k images per query that are nearer than the k nearest so far, and no others are sorted. Memory holds a block's
    `_QUERIES` x `_BANK` similarities and its features, whatever the size of the bank.
    """
    k = min(k, sum(map(len, banks)))
    scale = [inverted(lengths(bank)) for bank in banks]
    for start in range(0, len(queries), _QUERIES):
        block = unit_rows(queries[start : start + _QUERIES])
        similarity, index = np.empty((len(block), 0), np.float32), np.empty((len(block), 0), np.int64)
        seen = 0
        for bank, inverse in zip(banks, scale, strict=True):
            first = 0
            while first < len(bank):
                rows = slice(first, first + min(_BANK, max(_FIRST, seen)))
                part = bank[rows] * inverse[rows, None]
                similarity, index = _nearer(similarity, index, block @ part.T, seen, k)
                first, seen = first + len(part), seen + len(part)
        yield similarity, index


def _nearer(
    similarity: np.ndarray, index: np.ndarray, found: np.ndarray, offset: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest among `similarity` and `index` [Q k'], nearest first, and `found` [Q B], numbered from `offset`."""
    rows, width = found.shape
    if similarity.shape[1] == k:
        near = np.flatnonzero(found > similarity[:, -1:])
    elif similarity.shape[1] == 0 and width > k:
        near = np.flatnonzero(found >= np.partition(found, width - k, axis=1)[:, width - k, None])
    else:
        near = np.arange(found.size)
    row, column = np.divmod(near, width)
    row = np.concatenate([np.repeat(np.arange(rows), similarity.shape[1]), row])
    value = np.concatenate([similarity.ravel(), found.ravel()[near]])
    number = np.concatenate([index.ravel(), column + offset])
    order = np.lexsort((number, -value, row))
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the row
    kept = order[place < k]
    return value[kept].reshape(rows, -1), number[kept].reshape(rows, -1)


def precisions(every: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The precision at each relevant score of `own` [R], float64 [R]: #{own >= s} / #{every >= s}.

    `every` [N] are all scores, in rising order, those of `own` among them. Equal scores share a place of the ranking:
    the mean, which is average precision, does not depend on the order of ties.
    """
    relevant = len(own) - np.searchsorted(np.sort(own), own, "left")
    return relevant / (len(every) - np.searchsorted(every, own, "left"))


def lengths(features: np.ndarray) -> np.ndarray:
    """The length of every row of `features` [N D], float64 [N], read in blocks."""
    parts = [np.empty(0)]
    for start in range(0, len(features), _ROWS):
        block = np.asarray(features[start : start + _ROWS], np.float64)
        parts.append(np.sqrt(np.einsum("nd,nd->n", block, block)))
    return np.concatenate(parts)


def similarities(banks: Sequence[np.ndarray], queries: np.ndarray) -> Iterator[np.ndarray]:
    """Cosine similarity float32 [q N] of blocks of `queries` [Q D] to all of the joined `banks`, block by block.

    A block has as many queries as give `_MATRIX` similarities, so memory does not grow with the number of images.
    """
    size = sum(map(len, banks))
    scale = [inverted(lengths(bank)) for bank in banks]
    rows = max(1, _MATRIX // max(1, size))
    for start in range(0, len(queries), rows):
        block = unit_rows(queries[start : start + rows])
        similarity = np.empty((len(block), size), np.float32)
        offset = 0
        for bank, inverse in zip(banks, scale, strict=True):
            for first in range(0, len(bank), _ROWS):
                part = bank[first : first + _ROWS]
                place = slice(offset + first, offset + first + len(part))
                np.multiply(block @ part.T, inverse[first : first + len(part)], out=similarity[:, place])
            offset += len(bank)
        yield similarity


def inverted(length: np.ndarray) -> np.ndarray:
    """1 / length, float32, and 0 of 0: what rows are multiplied with to have length 1."""
    return np.divide(1, length, where=length > 0, out=np.zeros_like(length)).astype(np.float32)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays zero, so similar to nothing."""
    block = np.array(features, np.float32, order="C")
    largest = np.abs(block).max(axis=1, keepdims=True, initial=0)  # squares of tiny or huge numbers leave float32
    block /= np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(block, axis=1, keepdims=True)
    return block / np.where(norm > 0, norm, 1)
