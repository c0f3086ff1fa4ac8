"""Linear probe: how well a linear classifier of all labels reads the classes from frozen features.

Features are standardised by the training split. C is chosen on the validation split, the classifier is fitted again on
training and validation images with it, and the test split is read once.
"""

from __future__ import annotations

import numpy as np

from selfsup.evaluation import logistic
from selfsup.evaluation.result import Result, labelled, scored
from selfsup.features.store import Splits
from selfsup.params import Linear

FEATURES = logistic.FEATURES


def run(features: Splits, labels: Splits, params: Linear, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    """`metrics`: `top1` and `top1_balanced` with standard errors, the chosen `c`; `top5` with more than 5 classes."""
    features, labels = labelled(features, labels)
    standardise = logistic.Standardise(features.train)
    train, validation = standardise(features.train), standardise(features.validation)
    readings, converged = {}, True
    for classifier in logistic.fits(train, labels.train, params.c):
        readings[classifier.c] = classifier.accuracy(validation, labels.validation)
        converged &= classifier.converged
    chosen = max(readings, key=lambda c: (readings[c], -c))  # equal readings: the stronger regularisation
    joined, joined_labels = np.concatenate([train, validation]), np.concatenate([labels.train, labels.validation])
    (classifier,) = logistic.fits(joined, joined_labels, [chosen])
    top = classifier.predict(standardise(features.test), top=5)
    outcomes = {"top1": top[:, 0] == labels.test}
    if len(classifier.classes) > 5:
        outcomes["top5"] = (top == labels.test[:, None]).any(axis=1)
    metrics = {**scored(outcomes, labels.test), "c": chosen}
    details = {
        "validation_top1": {f"c{c:g}": value for c, value in readings.items()},
        "converged": converged and classifier.converged,
    }
    return Result(metrics, outcomes, top[:, 0], details)
