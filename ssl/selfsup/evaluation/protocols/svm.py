"""Linear SVMs, one per class, on l2-normalised features: VISSL's protocol, made for images with several labels.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", arXiv:1905.01235, section
5.1 and the appendix on VOC07. Each class has its own C, the one with the highest mean average precision in a stratified
3-fold cross-validation on the training images; here these are the training and validation images, as in `linear`. An
error on an image of the class counts twice. The metric is the mean over classes of the average precision (mAP).

Average precision is the mean of the precision at the place of each image of the class, as in scikit-learn. VOC from
2010 on first raises each precision to the highest at a greater recall, so its area is a little larger.

Differences from the paper: C is taken from the grid in `params.yaml` instead of 26 values, and liblinear solves the
primal problem where there are more images than features, which is faster and takes no random order. With `c` values and
`folds` there are c x folds + 1 fits per class, all in memory: made for thousands of images, not for a million.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat

from selfsup.config import Strict
from selfsup.evaluation.compare import standard_error
from selfsup.evaluation.neighbours import precisions, unit_rows
from selfsup.evaluation.result import Metric, Result, Table, Uncertainty, labelled
from selfsup.features.store import Splits

TITLE = "SVM per class"
NEEDS = {"features", "labels"}

POSITIVE = 2.0  # weight of an error on an image of the class
ITERATIONS = 2000  # an upper bound; fits that reach it are reported


class Params(Strict):
    c: Annotated[list[PositiveFloat], Field(min_length=1)]  # cost of an error, chosen per class by cross-validation
    folds: Annotated[int, Field(ge=2)]  # of the cross-validation


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:
    """The metrics are `map`, the mean of average precision over classes, and `map_11`, VOC 2007's 11-point form.

    Outcomes of `map` are per test image: the precision at its place in the ranking of its class, times N / (K N_c) for
    the N_c of N test images in class c of K. The table `classes` has each class's C and average precisions. Of the
    classes with training or validation images, the one with the highest score is predicted.
    """
    features, labels = labelled(features, labels)
    x = unit_rows(np.concatenate([features.train, features.validation]))
    known = np.concatenate([labels.train, labels.validation])
    classes = np.unique(np.concatenate([known, labels.test]))
    fitted = [fit(x, known == c, params, seed) for c in classes]
    scores = np.stack([one.scores(unit_rows(features.test)) for one in fitted], axis=1)  # [test images, K]
    tested = np.unique(labels.test)
    outcomes, eleven = np.zeros(len(labels.test)), {}
    for c, own in zip(classes, scores.T, strict=True):
        relevant = labels.test == c
        if relevant.any():
            found = precisions(np.sort(own), own[relevant])
            outcomes[relevant] = found * len(relevant) / (len(tested) * relevant.sum())
            eleven[c] = eleven_point(own, relevant)
    learnt = np.isin(classes, known)  # the scores of other classes are all 0, above most of these
    table = Table(["class", "c", "cross_validation", "test AP", "test 11-point AP"], [])
    for c, one in zip(classes, fitted, strict=True):
        mean = outcomes[labels.test == c].sum() * len(tested) / len(outcomes)
        table.rows.append([int(c), one.c, one.reading, float(mean), eleven.get(c, 0.0)])
    error = Uncertainty(standard_error(outcomes), "images")
    notes = [f"C of each class is the best of a {params.folds}-fold cross-validation on training and validation images"]
    notes += ["an SVM stopped before it converged"] if not all(one.converged for one in fitted) else []
    return Result(
        {
            "map": Metric(float(outcomes.mean()), "mAP", uncertainty=error, outcomes=outcomes),
            "map_11": Metric(float(np.mean([*eleven.values()])), "11-point mAP"),
        },
        notes=notes,
        tables={"classes": table},
        predicted=classes[learnt][scores[:, learnt].argmax(axis=1)],
        features="l2-normalised",
    )


@dataclass(frozen=True)
class Classifier:
    """The scores of one class: x.w + b."""

    c: float
    reading: float  # mean average precision over the folds, 0..1; 0 where there were too few images for folds
    weight: np.ndarray  # float64 [D]
    bias: float
    converged: bool

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Of `x` [N D], float64 [N]."""
        return x @ self.weight + self.bias


def fit(x: np.ndarray, target: np.ndarray, params: Params, seed: int) -> Classifier:
    """The SVM of one class: `x` [N D] with rows of length 1, `target` bool [N], also of several classes per image.

    With fewer than two images of the class, or of others, nothing is cross-validated, and C is the smallest. Without
    any, all scores are 0.
    """
    from sklearn.model_selection import StratifiedKFold

    cs, fewest = sorted(params.c), int(min(target.sum(), (~target).sum()))
    if fewest == 0:
        return Classifier(cs[0], 0.0, np.zeros(x.shape[1]), 0.0, True)
    readings = dict.fromkeys(cs, 0.0)
    if fewest > 1:
        folds = list(StratifiedKFold(min(params.folds, fewest)).split(x, target))
        readings = {c: float(np.mean([_reading(x, target, c, train, held, seed) for train, held in folds])) for c in cs}
    best = max(cs, key=lambda c: (readings[c], -c))  # equal readings: the stronger regularisation
    weight, bias, converged = _svm(x, target, best, seed)
    return Classifier(best, readings[best], weight, bias, converged)


def _reading(x: np.ndarray, target: np.ndarray, c: float, train: np.ndarray, held: np.ndarray, seed: int) -> float:
    """Average precision on the rows `held` of an SVM fitted on the rows `train`."""
    weight, bias, _ = _svm(x[train], target[train], c, seed)
    scores = x[held] @ weight + bias
    return float(precisions(np.sort(scores), scores[target[held]]).mean())


def _svm(x: np.ndarray, target: np.ndarray, c: float, seed: int) -> tuple[np.ndarray, float, bool]:
    """Weight [D], bias and whether the fit converged, of the minimum of

    |w|^2 / 2 + b^2 / 2 + C sum_i a_i max(0, 1 - y_i (x_i.w + b))^2, y = +-1, a = 2 for y = 1 and 1 otherwise.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    weights = {True: POSITIVE, False: 1.0}
    model = LinearSVC(C=c, class_weight=weights, dual="auto", max_iter=ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, target)
    return model.coef_[0], float(model.intercept_[0]), bool(model.n_iter_ < ITERATIONS)


def eleven_point(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over recalls t = 0, 0.1 .. 1 of the highest precision at a recall of at least t: VOC 2007's AP.

    `scores` [N], `relevant` bool [N] with at least one true. Everingham et al. 2010, "The PASCAL Visual Object Classes
    Challenge", section 4.2.
    """
    own = np.sort(scores[relevant])
    precision = precisions(np.sort(scores), own)
    recall = (len(own) - np.searchsorted(own, own, "left")) / len(own)
    return float(np.mean([precision[recall >= t - 1e-12].max() for t in np.linspace(0, 1, 11)]))
