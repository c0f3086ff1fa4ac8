"""Multinomial logistic regression on frozen features, shared by the probes: scikit-learn's, full batch, L-BFGS."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from selfsup.evaluation.mapped import gathered

FEATURES = "standardised on train"  # what the probes do to them
CURVE = "linear probe"  # accuracies over the number of labels make one line
ITERATIONS = 1000  # an upper bound; a fit that reaches it is reported
_BLOCK = 8192  # rows scored at once


class Standardise:
    """Zero mean and unit variance by the statistics of `train` [N D]; a constant feature becomes zero."""

    def __init__(self, train: np.ndarray):
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler()
        for start in range(0, len(train), _BLOCK):  # in blocks: its float64 copy of everything need not fit in memory
            self.scaler.partial_fit(train[start : start + _BLOCK])

    def __call__(self, *parts: np.ndarray) -> np.ndarray:
        """The rows of all `parts`, float32 [N D], a copy: in memory, or in a file as `gathered` has it."""
        blocks = (
            self.scaler.transform(part[start : start + _BLOCK])
            for part in parts
            for start in range(0, len(part), _BLOCK)
        )
        return gathered(blocks, sum(map(len, parts)), parts[0].shape[1])


@dataclass(frozen=True)
class Classifier:
    """Linear scores of standardised features; the class with the highest is predicted."""

    c: float
    classes: np.ndarray  # int64 [K]
    weight: np.ndarray  # float32 [K D]
    bias: np.ndarray  # float32 [K]
    converged: bool

    def predict(self, features: np.ndarray, top: int = 1) -> np.ndarray:
        """The `top` most likely classes of `features` [N D], most likely first, int64 [N min(top, K)]."""
        parts = [np.empty((0, min(top, len(self.classes))), np.int64)]
        for start in range(0, len(features), _BLOCK):
            scores = features[start : start + _BLOCK] @ self.weight.T + self.bias
            parts.append(self.classes[np.argsort(-scores, axis=1, kind="stable")[:, :top]])
        return np.concatenate(parts)

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Share of right predictions, in 0..1."""
        return float((self.predict(features)[:, 0] == labels).mean())


def fits(features: np.ndarray, labels: np.ndarray, cs: Sequence[float]) -> Iterator[Classifier]:
    """A classifier for each C, ascending, each starting from the previous one.

    `features` is standardised [N D], `labels` int [N] with at least two classes. C is scikit-learn's inverse
    regularisation: the minimum of |W|^2 / 2 + C (sum of cross entropies) is sought.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    basis = None
    if len(features) < features.shape[1]:
        features, basis = span(features)
    for c in sorted(cs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=c).fit(features, labels)
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # one score, in favour of the second
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        weight = weight if basis is None else weight @ basis.T
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
        yield Classifier(c, model.classes_, weight, bias, bool(model.n_iter_.max() < ITERATIONS))


def span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [N R] of `features` [N D], N < D, in an orthonormal basis [D R] of what they span.

    The best W lies in that span and has the same norm there, so a fit on the coordinates is the same fit, and cheaper.
    """
    x = features.astype(np.float64)
    value, vector = np.linalg.eigh(x @ x.T)
    kept = value > 1e-10 * value[-1]
    if not kept.any():  # all features are constant
        return features[:, :1], np.eye(features.shape[1], 1)
    length = np.sqrt(value[kept])
    return (vector[:, kept] * length).astype(np.float32), x.T @ (vector[:, kept] / length)
