"""What a protocol takes and gives: arrays of the three splits in, scores and their paired outcomes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfsup.evaluation.compare import accuracy, standard_error
from selfsup.features.store import Splits


@dataclass
class Result:
    """The scores of one representation under one protocol. Accuracies are shares in 0..1."""

    metrics: dict[str, float]
    outcomes: dict[str, np.ndarray]  # by metric: right or not, bool [test images] or [label draws, test images]
    predicted: np.ndarray | None = None  # int64 [test images], the predicted class
    details: dict[str, Any] = field(default_factory=dict)  # what was chosen and on which readings


def scored(outcomes: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """The metrics of `outcomes`, which are [N] or [M N]; `labels` int64 [N] are those of the test images.

    For each key: `<key>`, the accuracy, and `<key>_balanced`, the class-balanced one. Of both the standard error over
    test images (`_se`), or where there are several draws of the labels, the standard deviation over them (`_std`).
    """
    metrics = {}
    for key, right in outcomes.items():
        for name, strata in ((key, None), (f"{key}_balanced", labels)):
            shares = accuracy(right, strata)
            metrics[name] = float(shares.mean())
            if right.ndim == 1:
                metrics[f"{name}_se"] = standard_error(right, strata)
            else:
                metrics[f"{name}_std"] = float(shares.std(ddof=1))
    return metrics


def labelled(features: Splits, labels: Splits) -> tuple[Splits, Splits]:
    """Drop the samples without a label (-1). Arrays in which all are labelled are passed on uncopied."""
    kept = [
        (x, y) if (y >= 0).all() else (x[np.flatnonzero(y >= 0)], y[y >= 0])
        for x, y in zip(features, labels, strict=True)
    ]
    return Splits(*(x for x, _ in kept)), Splits(*(y for _, y in kept))
