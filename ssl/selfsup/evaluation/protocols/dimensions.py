"""kNN on the first k principal components: how much of the width of the features is used?

The mean and the components are those of the training features. Features are centred and projected on the first k
components, and the nearest images by cosine vote as in `knn`; the bank are the training and validation images. Nothing
is chosen. All components together are a rotation of the centred features, so that accuracy is read without them. It may
differ from that of `knn`, which does not centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from selfsup.config import Strict
from selfsup.evaluation.mapped import gathered
from selfsup.evaluation.neighbours import classify
from selfsup.evaluation.result import Metric, Result, Table, labelled, right
from selfsup.features.store import Splits

TITLE = "dimensions"
NEEDS = {"features", "labels"}

SHARE = 0.95  # of the accuracy with all components
TINY = 1e-10  # of the largest variance: below it a component is rounding
_ROWS = 8192  # read at once


class Params(Strict):
    components: Annotated[list[PositiveInt], Field(min_length=1)]  # k
    neighbours: PositiveInt  # that vote
    temperature: PositiveFloat  # tau, as in knn


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    """The metrics are `mean`, the mean of the accuracies over all k, `k_<k>`, `k_all` and `needed`.

    `needed` is the smallest k whose accuracy is at least 95 % of that of all components, or else the width D. The table
    `components` has for each k the share of the training features' variance and the accuracy. A k above the rank of the
    features gives the accuracy of all components.
    """
    features, labels = labelled(features, labels)
    width, bank_labels = features.train.shape[1], np.concatenate([labels.train, labels.validation])
    votes = min(params.neighbours, len(bank_labels))

    def hits(parts: Splits) -> np.ndarray:
        found = classify([parts.train, parts.validation], bank_labels, parts.test, [votes], params.temperature)
        return found[votes] == labels.test

    ks = sorted(set(params.components))
    mean, directions, shares = principal(features.train, ks[-1])
    projected = Splits(*(project(x, mean, directions) for x in features))
    every = hits(Splits(*(gathered((block - mean for block in _blocks(x)), *x.shape) for x in features)))
    rank = len(shares)
    whole = rank < min(ks[-1], width)  # no further direction varies
    reached = {k: every if k >= width or (whole and k >= rank) else hits(_first(projected, k)) for k in ks}
    enough = [k for k in ks if reached[k].mean() >= SHARE * every.mean()]
    metrics = {"mean": right(np.mean([*reached.values()], axis=0), labels.test, f"mean of {ks[0]} to {ks[-1]}")}
    metrics |= {f"k_{k}": right(hit, labels.test, f"first {k}") for k, hit in reached.items()}
    metrics["k_all"] = right(every, labels.test, "all")
    metrics["needed"] = Metric(float(min([*enough, width])), "components for 95 % of all", unit="none", judged=False)
    table = Table(["components", "variance", "test accuracy"], [])
    table.rows.extend([k, float(shares[:k].sum()), float(reached[k].mean())] for k in ks if k < width)
    table.rows.append([width, 1.0 if shares.any() else 0.0, float(every.mean())])
    return Result(metrics, tables={"components": table}, features="centred on train, then l2-normalised")


def _first(parts: Splits, k: int) -> Splits:
    return Splits(*(x[:, :k] for x in parts))


def principal(train: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean float32 [D], the first components float32 [D k] and their shares of the variance [k], k <= `most`.

    Components in which `train` [N D] does not vary are left out, but for one. The covariance is summed in blocks in
    float64: memory holds D^2 numbers, or N^2 + N D where N < D.
    """
    from scipy.linalg import eigh

    mean = sum(x.sum(axis=0, dtype=np.float64) for x in _blocks(train)) / len(train)
    if len(train) < train.shape[1]:
        centred = train - mean  # [N D], float64
        matrix = centred @ centred.T
    else:
        matrix = sum((x - mean).T @ (x - mean) for x in _blocks(train))
    size = len(matrix)
    value, vector = eigh(matrix, subset_by_index=[max(0, size - most), size - 1])
    value, vector = value[::-1], vector[:, ::-1]
    kept = max(1, int((value > TINY * value[0]).sum()))
    value, vector = np.maximum(value[:kept], 0), vector[:, :kept]
    if len(train) < train.shape[1]:
        vector = centred.T @ vector / np.sqrt(np.where(value > 0, value, 1))
    total = float(np.trace(matrix))
    return mean.astype(np.float32), vector.astype(np.float32), value / (total if total > 0 else 1)


def project(features: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Coordinates float32 [N k] of `features` [N D] along `directions` [D k]."""
    return gathered(((x - mean) @ directions for x in _blocks(features)), len(features), directions.shape[1])


def _blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    return (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
