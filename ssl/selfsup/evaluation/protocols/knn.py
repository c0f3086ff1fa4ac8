"""Weighted k nearest neighbours on l2-normalised features: no training, so nothing but the features is judged.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv:1805.01978, section
3.4: each of the k nearest images of the bank votes for its class with weight exp(s / tau), s the cosine similarity.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from selfsup.config import Strict
from selfsup.evaluation.neighbours import classify
from selfsup.evaluation.result import Choice, Result, labelled, right
from selfsup.features.store import Splits

TITLE = "kNN"
NEEDS = {"features", "labels"}


class Params(Strict):
    k: Annotated[list[PositiveInt], Field(min_length=1)]  # each is reported; the headline's is chosen on validation
    temperature: PositiveFloat  # tau


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    """Choose k on the validation split with the training split as the bank; then test with both as the bank.

    A k larger than the bank means the whole bank. The metric is `top1`, the accuracy with the chosen `k`.
    """
    (train, validation, test), labels = labelled(features, labels)
    ks = sorted({min(k, len(train)) for k in params.k})
    readings = {
        k: float((predicted == labels.validation).mean())
        for k, predicted in classify([train], labels.train, validation, ks, params.temperature).items()
    }
    chosen = max(ks, key=lambda k: (readings[k], -k))  # equal readings: the smaller k
    bank_labels = np.concatenate([labels.train, labels.validation])
    predicted = classify([train, validation], bank_labels, test, ks, params.temperature)
    correct = {k: predicted[k] == labels.test for k in ks}
    clipped = ", ".join(str(k) for k in sorted(set(params.k)) if k > len(train))
    return Result(
        metrics={"top1": right(correct[chosen], labels.test, "top-1")},
        choices={"k": Choice(chosen, "k", readings, {k: float(correct[k].mean()) for k in ks})},
        notes=[f"k {clipped} exceeds the bank: its {len(train)} images all vote"] if clipped else [],
        predicted=predicted[chosen],
        features="l2-normalised",
    )
