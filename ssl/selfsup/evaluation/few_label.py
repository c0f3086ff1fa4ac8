"""Linear probe with few labels: where pretraining pays most.

Each setting (n labels a class, or a stratified share of the training labels) is drawn several times. The draws depend
on the seed and the labels alone, so every representation sees the same ones and differences pair up; a smaller
setting's images are a subset of a larger one's. C is chosen once a setting, by the mean validation accuracy over its
draws. The statistics that standardise features come from all training images, which takes no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfsup.evaluation import logistic
from selfsup.evaluation.result import Result, Splits, labelled
from selfsup.params import FewLabel

FEATURES = logistic.FEATURES


@dataclass(frozen=True)
class Setting:
    """How many labels each class gives."""

    key: str  # of the metric: per_class_5, percent_1
    counts: np.ndarray  # int64 [classes]


def settings(labels: np.ndarray, params: FewLabel) -> tuple[list[Setting], list[str]]:
    """The settings that `labels` int64 [N] of the training split can serve, and a line on each that it cannot."""
    available = np.bincount(labels)  # [classes]
    fewest = int(available[available > 0].min())
    kept, notes = [], []
    for n in sorted(set(params.per_class)):
        if n > fewest:
            notes.append(f"{n} labels a class left out: the smallest class has {fewest} training images")
        else:
            kept.append(Setting(f"per_class_{n}", np.where(available > 0, n, 0)))
    for fraction in sorted(set(params.fraction)):
        counts = np.maximum(np.rint(fraction * available).astype(np.int64), available > 0)  # at least one a class
        kept.append(Setting(f"percent_{100 * fraction:g}", counts))
    return kept, notes


def label_draw(labels: np.ndarray, counts: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """Training images of one draw, int64 ascending: `counts[c]` of every class c, the first in a seeded order."""
    import torch

    from selfsup.views.draw import Draw

    key = Draw(seed, draw, torch.arange(len(labels))).fork("few_label").key.numpy()
    order = np.lexsort((key, labels))  # by class, in a random order inside each
    sizes = np.bincount(labels, minlength=len(counts))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the class
    return np.sort(order[place < counts[labels[order]]])


def run(features: Splits, labels: Splits, params: FewLabel, seed: int) -> Result:
    """`metrics`: for every setting its mean test accuracy over the draws and `<setting>_std`, their deviation."""
    features, labels = labelled(features, labels)
    standardise = logistic.Standardise(features.train)
    validation, test = standardise(features.validation), standardise(features.test)
    kept, notes = settings(labels.train, params)
    result = Result({}, {}, details={"notes": notes, "c": {}, "labels": {}})
    for setting in kept:
        fitted, readings = [], []
        for draw in range(params.draws):
            chosen = label_draw(labels.train, setting.counts, seed, draw)
            few = standardise(features.train[chosen])
            fitted.append(list(logistic.fits(few, labels.train[chosen], params.c)))
            readings.append([one.accuracy(validation, labels.validation) for one in fitted[-1]])
        best = int(np.mean(readings, axis=0).argmax())  # equal readings: the stronger regularisation
        scores = np.array([by_c[best].accuracy(test, labels.test) for by_c in fitted])
        result.outcomes[setting.key] = scores
        result.metrics[setting.key] = float(scores.mean())
        result.metrics[f"{setting.key}_std"] = float(scores.std(ddof=1))
        result.details["c"][setting.key] = fitted[0][best].c
        result.details["labels"][setting.key] = int(setting.counts.sum())
    return result
