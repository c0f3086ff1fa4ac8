"""Whether a difference exceeds its spread: the one place where scores are compared.

Two representations are scored on the same units (test images, or draws of labels), so their difference is taken unit by
unit, which removes what the units have in common. The spread is the half-width of the 95 % confidence interval of the
mean difference, Student's t with n - 1 degrees of freedom. It covers the units alone: another seed of the pretraining
is another experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and its spread in the same unit."""

    mean: float
    spread: float

    @property
    def exceeds(self) -> bool:
        """The difference is larger than its spread, in either direction."""
        return abs(self.mean) > self.spread


@dataclass(frozen=True)
class Ranking:
    """The best row, the next one, and how far apart the two are."""

    best: str
    runner_up: str
    difference: Difference


def standard_error(outcomes: np.ndarray) -> float:
    """Standard error of the mean of `outcomes` [n]; infinite for n < 2."""
    if len(outcomes) < 2:
        return float("inf")
    return float(np.std(outcomes, dtype=np.float64, ddof=1) / np.sqrt(len(outcomes)))


def paired(a: np.ndarray, b: np.ndarray) -> Difference:
    """Mean of a - b over the same units, `a` and `b` [n], booleans or numbers. Raises `ValueError` if n differs."""
    from scipy.special import stdtrit

    if len(a) != len(b):
        raise ValueError(f"paired outcomes need the same units, got {len(a)} and {len(b)}")
    difference = a.astype(np.float64) - b.astype(np.float64)
    if len(difference) < 2:
        return Difference(float(difference.mean()), float("inf"))
    t = stdtrit(len(difference) - 1, (1 + CONFIDENCE) / 2)
    return Difference(float(difference.mean()), float(t * standard_error(difference)))


def rank(outcomes: Mapping[str, np.ndarray]) -> Ranking | None:
    """The best of several rows by mean outcome and its lead over the next. None with fewer than two rows."""
    if len(outcomes) < 2:
        return None
    order = sorted(outcomes, key=lambda row: -float(outcomes[row].mean()))
    return Ranking(order[0], order[1], paired(outcomes[order[0]], outcomes[order[1]]))
