"""What a protocol takes and gives: arrays of the three splits in, scores and their paired outcomes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Splits(NamedTuple):
    """One array for each split: features [N D], or labels [N]."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass
class Result:
    """The scores of one representation under one protocol. Accuracies are shares in 0..1."""

    metrics: dict[str, float]
    outcomes: dict[str, np.ndarray]  # by metric: its units [n], test images or label draws, whose mean is the metric
    predicted: np.ndarray | None = None  # int64 [test images], the predicted class
    details: dict[str, Any] = field(default_factory=dict)  # what was chosen and on which readings


def labelled(features: Splits, labels: Splits) -> tuple[Splits, Splits]:
    """Drop the samples without a label (-1). Arrays in which all are labelled are passed on uncopied."""
    kept = [
        (x, y) if (y >= 0).all() else (x[np.flatnonzero(y >= 0)], y[y >= 0])
        for x, y in zip(features, labels, strict=True)
    ]
    return Splits(*(x for x, _ in kept)), Splits(*(y for _, y in kept))
