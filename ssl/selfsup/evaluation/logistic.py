"""Multinomial logistic regression on frozen features, shared by the probes: scikit-learn's, full batch, L-BFGS."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FEATURES = "standardised on train"
ITERATIONS = 1000  # an upper bound; a fit that reaches it is reported
_BLOCK = 8192  # rows scored at once


class Standardise:
    """Zero mean and unit variance by the statistics of `train` [N D]; a constant feature becomes zero."""

    def __init__(self, train: np.ndarray):
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler()
        for start in range(0, len(train), _BLOCK):  # in blocks: its float64 copy of everything need not fit in memory
            self.scaler.partial_fit(train[start : start + _BLOCK])

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Float32 [N D], a copy."""
        return self.scaler.transform(features)


def fits(features: np.ndarray, labels: np.ndarray, cs: Sequence[float]) -> Iterator[tuple[LogisticRegression, bool]]:
    """A model for each C, ascending, each starting from the one before; and whether it converged.

    `features` is standardised [N D], `labels` int [N] with at least two classes. C is scikit-learn's inverse
    regularisation of the summed loss.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    for c in sorted(cs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=c).fit(features, labels)
        yield copy.copy(model), bool(model.n_iter_.max() < ITERATIONS)


def predict(model: LogisticRegression, features: np.ndarray, top: int = 1) -> np.ndarray:
    """The `top` most likely classes, most likely first, int64 [N min(top, classes)]."""
    parts = [np.empty((0, min(top, len(model.classes_))), np.int64)]
    for start in range(0, len(features), _BLOCK):
        scores = model.decision_function(features[start : start + _BLOCK])
        if scores.ndim == 1:  # two classes: one score, in favour of the second
            scores = np.stack([-scores, scores], axis=1)
        parts.append(model.classes_[np.argsort(-scores, axis=1, kind="stable")[:, :top]])
    return np.concatenate(parts)


def accuracy(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions, in 0..1."""
    return float((predict(model, features)[:, 0] == labels).mean())
