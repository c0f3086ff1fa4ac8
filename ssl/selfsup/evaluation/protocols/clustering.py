"""k-means on l2-normalised features: do the images of a class lie together before anyone tells which class they are?

As many clusters as the training images have classes are found on the training features, without labels, from several
seeded starts. Test images join the nearest centre. Two accuracies are given. In the first, clusters are named by the
one-to-one assignment with most hits on the test labels (Kuhn 1955, the Hungarian method), the convention of deep
clustering: Xie et al. 2016, arXiv:1511.06335, equation 10. It reads the test labels to name clusters and for nothing
else; clusters and centres do not depend on them. In the second, training and validation labels name the clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field

from selfsup.config import Strict
from selfsup.evaluation.neighbours import inverted, lengths, unit_rows
from selfsup.evaluation.result import Metric, Result, Uncertainty, labelled, right
from selfsup.features.store import Splits

TITLE = "clustering"
NEEDS = {"features", "labels"}

ITERATIONS = 100  # of one start, an upper bound
GAIN = 1e-5  # a start ends when the mean squared distance falls by a smaller share than this
_ROWS = 4096  # read at once
_SEEDING = 20_000  # features among which first centres are drawn, or 32 per cluster if that is more


class Params(Strict):
    starts: Annotated[int, Field(ge=2)]  # figures are means over them, ± their standard deviation
    silhouette: Annotated[int, Field(ge=2)]  # test images, at most, that the silhouette is read from


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:
    """Metrics: `accuracy` and `named_by_train` (0..1), `nmi` (0..1), `ari` (-0.5..1) and `silhouette` (-1..1).

    Outcomes of the accuracies are bool [starts, test images]. The silhouette takes no labels.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    features, labels = labelled(features, labels)
    centres = k_means(features.train, len(np.unique(labels.train)), params.starts, seed)  # [starts K D]
    found = nearest(features.test, centres)  # [starts, test images]
    known = np.concatenate([nearest(part, centres) for part in features[:2]], axis=1)
    known_labels = np.concatenate(labels[:2])
    clusters = centres.shape[1]
    oracle = np.stack([names(own, labels.test, clusters)[own] for own in found])
    honest = np.stack([names(before, known_labels, clusters)[own] for before, own in zip(known, found, strict=True)])
    nmi = [normalized_mutual_info_score(labels.test, own) for own in found]
    ari = [adjusted_rand_score(labels.test, own) for own in found]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(features.test))[: params.silhouette])
    return Result(
        {
            "accuracy": right(oracle == labels.test, labels.test, "accuracy"),
            "named_by_train": right(honest == labels.test, labels.test, "named by training labels"),
            "nmi": _over_starts(nmi, "NMI"),
            "ari": _over_starts(ari, "ARI"),
            "silhouette": _over_starts(silhouettes(features.test[chosen], found[:, chosen]), "silhouette"),
        },
        notes=["accuracy names the clusters by the assignment with most hits on the test labels, as is customary"],
        features="l2-normalised",
    )


def _over_starts(values: list[float], title: str) -> Metric:
    size = float(np.std(values, ddof=1))
    return Metric(float(np.mean(values)), title, unit="none", uncertainty=Uncertainty(size, "draws"))


def k_means(features: np.ndarray, clusters: int, starts: int, seed: int) -> np.ndarray:
    """Centres float32 [starts K D] of `features` [N D] with rows of length 1, each start a local minimum.

    The sum over images of |x - c(x)|^2 is lowered by Lloyd's algorithm (Lloyd 1982) from first centres by k-means++
    (Arthur & Vassilvitskii 2007) on a seeded sample. An empty cluster keeps its centre. All starts share one pass over
    the features per iteration, in blocks: memory holds a length per image, the sample, and starts * K * D numbers.
    """
    from sklearn.cluster import kmeans_plusplus

    norm = lengths(features)
    draw = np.random.default_rng(seed)
    sample = unit_rows(features[np.sort(draw.permutation(len(features))[: max(_SEEDING, 32 * clusters)])])
    seeds = draw.integers(0, 2**31, starts)
    centres = np.stack([kmeans_plusplus(sample, clusters, random_state=int(one))[0] for one in seeds])
    before = np.full(starts, np.inf)
    active = np.arange(starts)
    for _ in range(ITERATIONS):
        means, distance = lloyd_step(features, norm, centres[active])
        centres[active] = means
        ended = before[active] - distance <= GAIN * distance
        before[active] = distance
        active = active[~ended]
        if not len(active):
            break
    return centres


def lloyd_step(features: np.ndarray, norm: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means [S K D] of the images nearest to each of `centres` [S K D], and the mean squared distance [S] before.

    `features` [N D] are divided by `norm` [N] as they are read.
    """
    from scipy.sparse import csc_array

    starts, clusters, width = centres.shape
    sums = np.zeros((starts * clusters, width))
    counts = np.zeros(starts * clusters, np.int64)
    distance = np.zeros(starts)
    for _, block, inverse, score in _scored(features, norm, centres):
        own = score.argmax(axis=2)  # [n S]
        best = np.take_along_axis(score, own[:, :, None], axis=2)[:, :, 0]
        distance += ((inverse > 0)[:, None] - 2 * best.astype(np.float64)).sum(axis=0)
        own = (own + np.arange(starts) * clusters).ravel()
        per_image = np.arange(0, len(own) + 1, starts)  # where each image's clusters begin in `own`
        member = csc_array((np.repeat(inverse, starts), own, per_image), shape=(starts * clusters, len(block)))
        sums += member @ block
        counts += np.bincount(own, minlength=len(counts))
    filled = counts > 0
    means = centres.reshape(-1, width).copy()
    means[filled] = sums[filled] / counts[filled, None]
    return means.reshape(centres.shape), distance / len(features)


def nearest(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest of `centres` [S K D] to the direction of every row of `features` [N D], int64 [S N]."""
    found = np.empty((len(centres), len(features)), np.int64)
    for rows, _, _, score in _scored(features, lengths(features), centres):
        found[:, rows] = score.argmax(axis=2).T
    return found


def _scored(
    features: np.ndarray, norm: np.ndarray, centres: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of rows: place, rows [n D], 1 / length [n], and x.c - |c|^2 / 2 [n S K], most for the nearest centre."""
    starts, clusters, width = centres.shape
    flat = centres.reshape(-1, width)
    half = ((flat.astype(np.float64) ** 2).sum(axis=1) / 2).astype(np.float32)
    for first in range(0, len(features), _ROWS):
        rows = slice(first, first + _ROWS)
        block = features[rows]
        inverse = inverted(norm[rows])
        score = block @ flat.T
        score *= inverse[:, None]
        score -= half
        yield rows, block, inverse, score.reshape(-1, starts, clusters)


def names(found: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """The class of each of K clusters, int64 [K], one-to-one with most hits; -1 for clusters that are left over.

    `found` int64 [N] are the clusters of images with these `labels` int64 [N].
    """
    from scipy.optimize import linear_sum_assignment

    classes = int(labels.max()) + 1
    hits = np.bincount(found * classes + labels, minlength=clusters * classes).reshape(clusters, classes)
    name = np.full(clusters, -1)
    rows, columns = linear_sum_assignment(hits, maximize=True)
    name[rows] = columns
    return name


def silhouettes(features: np.ndarray, found: np.ndarray) -> list[float]:
    """The mean silhouette of `features` [n D] under each start's clusters `found` [S n]; 0 where none is defined.

    (b - a) / max(a, b), with a the mean distance to the own cluster's other images and b that to the nearest other
    cluster. Rousseeuw 1987, Journal of Computational and Applied Mathematics 20.
    """
    from sklearn.metrics import pairwise_distances, silhouette_score

    distance = pairwise_distances(unit_rows(features).astype(np.float64))
    np.fill_diagonal(distance, 0)
    return [
        float(silhouette_score(distance, own, metric="precomputed")) if 1 < len(np.unique(own)) < len(own) else 0.0
        for own in found
    ]
