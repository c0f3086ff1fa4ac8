"""How scores are averaged and compared, and whether a difference exceeds its spread: the one place for both.

Outcomes are what a metric is the mean of, by test image [N] or by draw and test image [M N]. Those of accuracy say
whether the answer was right. Class-balanced accuracy is the mean over classes of each class's own mean (recall), over
the classes that the test split has.

Two representations are scored on the same draws and images, so their difference is taken unit by unit, which removes
what the units have in common. The spread is the half-width of the 95 % confidence interval of the mean difference. Its
squared standard error is

    s_images^2 / N                           s_images: deviation over images of the differences, averaged over draws
    + s_draws^2 / M  where M > 1             s_draws:  deviation over draws of the differences, averaged over images

and, class-balanced, the first term is sum_c (s_c^2 / N_c) / K^2 over the K classes with N_c images each. The spread
covers the images and the draws alone: another seed of the pretraining is another experiment.

Where all N units are alike, their deviation of 0 is no estimate. Two units are then added, as Agresti & Coull 1998 do
for a proportion (one right, one wrong) and Agresti & Min 2005 for a difference of paired proportions (half a pair in
each cell of the table). The mean stays as it is, so the squared deviations are taken from that mean.
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
    higher_is_better: bool = True
    p: float = 1.0  # two-sided, of no difference; 1 where nothing tells of the spread

    @property
    def exceeds(self) -> bool:
        """The difference is larger than its spread, in either direction."""
        return abs(self.mean) > self.spread

    @property
    def ahead(self) -> bool:
        """The first of the two is better by more than the spread."""
        return (self.mean if self.higher_is_better else -self.mean) > self.spread


@dataclass(frozen=True)
class Ranking:
    """The best row, the next one, and how far apart the two are."""

    best: str
    runner_up: str
    difference: Difference


def class_means(outcomes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean of each class's `outcomes` [.. N], float64 [.. K], over the K classes among `labels` [N], ascending."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return np.add.reduceat(np.asarray(outcomes, np.float64)[..., order], starts, axis=-1) / counts


def accuracy(outcomes: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The mean of `outcomes` [.. N] over images, float64 [..]; with `labels` [N], class-balanced."""
    by_class = outcomes if labels is None else class_means(outcomes, labels)
    return np.asarray(by_class).mean(axis=-1, dtype=np.float64)


def standard_error(outcomes: np.ndarray, labels: np.ndarray | None = None) -> float:
    """Standard error of `accuracy(outcomes, labels)`, `outcomes` [N] in 0..1; infinite for N < 2.

    With `labels` [N] the images of each class are a sample of their own: sqrt(sum_c s_c^2 / N_c) / K.
    """
    return float(np.sqrt(_squared_error(outcomes, labels, pseudo=1.0)))


def paired(a: np.ndarray, b: np.ndarray, labels: np.ndarray | None = None, higher_is_better: bool = True) -> Difference:
    """The difference of two rows' means, `a` and `b` [N] or [M N]; with `labels` [N], of the class-balanced ones.

    Its p-value is below 1 - CONFIDENCE exactly where the difference exceeds its spread.

    Raises `ValueError` where the units are not the same.
    """
    from scipy.special import stdtr, stdtrit

    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"paired outcomes need the same units, got {a.shape[-1]} and {b.shape[-1]}")
    difference = np.atleast_2d(a.astype(np.float64) - b.astype(np.float64))  # [M N]
    by_draw = accuracy(difference, labels)  # [M]
    mean, draws, images = float(by_draw.mean()), len(by_draw), difference.shape[1]
    if images < 2:
        return Difference(mean, float("inf"), higher_is_better)
    parts = [(_squared_error(difference.mean(axis=0), labels, pseudo=0.0), images - 1)]
    if draws > 1:
        parts.append((float(by_draw.var(ddof=1)) / draws, draws - 1))
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)  # Satterthwaite 1946
    spread = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(total))
    p = float(2 * stdtr(freedom, -abs(mean) / np.sqrt(total)))
    return Difference(mean, spread, higher_is_better, p)


def rank(
    outcomes: Mapping[str, np.ndarray], labels: np.ndarray | None = None, higher_is_better: bool = True
) -> Ranking | None:
    """The best of several rows by the mean and its lead over the next. None with fewer than two rows."""
    if len(outcomes) < 2:
        return None
    sign = -1 if higher_is_better else 1
    best, second, *_ = sorted(outcomes, key=lambda row: sign * float(accuracy(outcomes[row], labels).mean()))
    return Ranking(best, second, paired(outcomes[best], outcomes[second], labels, higher_is_better))


def _squared_error(values: np.ndarray, labels: np.ndarray | None, pseudo: float) -> float:
    """Squared standard error of the mean, or class-balanced mean, of `values` [N]; infinite for N < 2.

    `pseudo` is the sum of the two units that are added where all are alike: 0 + 1 of outcomes, of differences 0.
    """
    if len(values) < 2:
        return float("inf")
    if labels is None:
        return _of_mean(values, pseudo)
    order = np.argsort(labels, kind="stable")
    classes = np.split(values[order], np.unique(labels[order], return_index=True)[1][1:])
    return sum(_of_mean(each, pseudo) for each in classes) / len(classes) ** 2


def _of_mean(values: np.ndarray, pseudo: float) -> float:
    n = len(values)
    if np.ptp(values.astype(np.float64)) > 0:
        return float(np.var(values, dtype=np.float64, ddof=1)) / n
    return alike(float(values[0]), n, pseudo)


def alike(value: float, count: int, pseudo: float = 0.0) -> float:
    """Squared standard error of the mean of `count` differences, or outcomes (`pseudo` 1), that are all `value`.

    `pseudo` is the sum of the two units that are added.
    """
    deviations = 1 - 2 * value * pseudo + 2 * value**2  # of the two that are added, whose squares sum to 1
    return deviations / (count + 2) ** 2
