"""How many images each class has: the majority row, and whether accuracy needs the class-balanced one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfsup.evaluation.result import Result, right
from selfsup.features.store import Splits

SPLITS = ("train", "test")
RATIO = 1.5
"""Classes are uneven where the largest of a split has more than this many times the images of its smallest."""


def balance(labels: Splits, classes: Sequence[str]) -> dict[str, Any]:
    """The facts of the class counts of the training and the test labels (-1: none), as `details.json` has them.

    `uneven` says whether either split is; `train` and `test` have the counts of the largest class and of the smallest
    that the split has, and the number of `classes` in it; `commonest` is the class that the majority row answers.
    """
    facts: dict[str, Any] = {"uneven": False, "commonest": classes[commonest(labels)[0]]}
    for split in SPLITS:
        values = getattr(labels, split)
        counts = np.bincount(values[values >= 0])
        counts = counts[counts > 0]
        facts[split] = {"largest": int(counts.max()), "smallest": int(counts.min()), "classes": len(counts)}
        facts["uneven"] |= bool(counts.max() > RATIO * counts.min())
    return facts


def uneven_line(facts: dict[str, Any]) -> str:
    """What `balance` found, in words."""
    spans = (f"{facts[split]['smallest']} to {facts[split]['largest']} images per class in {split}" for split in SPLITS)
    return f"classes are uneven: {', '.join(spans)}"


def commonest(labels: Splits) -> np.ndarray:
    """Classes by their number of training and validation labels, int64 [K], most first; of equal ones the first."""
    learnt = np.concatenate([labels.train, labels.validation])
    counts = np.bincount(learnt[learnt >= 0])
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0]


def majority(labels: Splits, like: Result) -> Result | None:
    """What always answering the commonest class of the training and validation labels scores, under `like`'s metrics.

    None where no metric is about classes. The answer is the same under every protocol. With n labels per class no class
    is commonest among the labels drawn, so there, too, it is that of all training and validation labels. Where a metric
    takes several answers, they are the commonest classes.
    """
    order, test = commonest(labels), labels.test[labels.test >= 0]
    metrics = {
        key: right(np.isin(test, order[: metric.answers]), test, metric.title, metric.answers, metric.curve)
        for key, metric in like.metrics.items()
        if metric.answers is not None
    }
    if not metrics:
        return None
    return Result(metrics, predicted=None if like.predicted is None else np.full(len(test), order[0]))
