"""Linear probe: how well a linear classifier of all labels reads the classes from frozen features.

Features are standardised by the training split. C is chosen on the validation split, the classifier is fitted again on
training and validation images with it, and the test split is read once.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat

from selfsup.config import Strict
from selfsup.evaluation import logistic
from selfsup.evaluation.result import Choice, Curve, Result, labelled, right
from selfsup.features.store import Splits

TITLE = "linear probe"
NEEDS = {"features", "labels"}


class Params(Strict):
    c: Annotated[list[PositiveFloat], Field(min_length=1)]  # inverse regularisation, chosen on validation


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    """The metrics are `top1` and, with more than 5 classes, `top5`: the class is among the 5 of the highest scores."""
    features, labels = labelled(features, labels)
    standardise = logistic.Standardise(features.train)
    joined, joined_labels = standardise(*features[:2]), np.concatenate(labels[:2])
    train, validation = np.split(joined, [len(labels.train)])
    readings, converged = {}, True
    for classifier in logistic.fits(train, labels.train, params.c):
        readings[classifier.c] = classifier.accuracy(validation, labels.validation)
        converged &= classifier.converged
    chosen = max(readings, key=lambda c: (readings[c], -c))  # equal readings: the stronger regularisation
    (classifier,) = logistic.fits(joined, joined_labels, [chosen])
    top = classifier.predict(standardise(features.test), top=5)
    curve = Curve(logistic.CURVE, len(joined), len(joined))
    metrics = {"top1": right(top[:, 0] == labels.test, labels.test, "top-1", curve=curve)}
    if len(classifier.classes) > 5:
        metrics["top5"] = right((top == labels.test[:, None]).any(axis=1), labels.test, "top-5", answers=5)
    late = [] if converged and classifier.converged else ["the classifier stopped before it converged"]
    choices = {"c": Choice(chosen, "C", readings)}
    return Result(metrics, choices, notes=late, predicted=top[:, 0], features=logistic.FEATURES)
