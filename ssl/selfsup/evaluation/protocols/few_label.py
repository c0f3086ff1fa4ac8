"""Linear probe with few labels: where pretraining pays most.

Each setting (n labels per class, or a stratified share of the training labels) is drawn several times. The draws depend
on the seed and the labels alone, so every representation sees the same ones and differences pair up; a smaller
setting's images are a subset of a larger one's. C is chosen once per setting, by the mean validation accuracy over its
draws. A setting that takes all labels leaves nothing to draw and is fitted once. The statistics that standardise
features come from all training images, which takes no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from selfsup.config import Strict
from selfsup.evaluation import logistic
from selfsup.evaluation.result import Curve, Metric, Result, Table, labelled, right
from selfsup.features.store import Splits

TITLE = "few labels"
NEEDS = {"features", "labels"}


class Params(Strict):
    per_class: list[PositiveInt]  # labels per class
    fraction: list[Annotated[float, Field(gt=0, le=1)]]  # stratified shares of the training labels
    draws: Annotated[int, Field(ge=2)]
    c: Annotated[list[PositiveFloat], Field(min_length=1)]  # inverse regularisation, chosen on validation


@dataclass(frozen=True)
class Setting:
    """How many labels each class gives."""

    key: str  # of the metric: per_class_5, percent_1
    title: str  # for people: 5 per class, 1 %
    counts: np.ndarray  # int64 [classes]
    all: bool = False  # these are all labels that there are


def settings(labels: np.ndarray, params: Params) -> tuple[list[Setting], list[str]]:
    """The settings that `labels` int64 [N] of the training split can serve.

    And a line on each that it cannot, on each whose number of labels differs from its name, and on each that takes
    the labels of another.
    """
    available = np.bincount(labels)  # [classes]
    fewest = int(available[available > 0].min())
    asked, notes = [], []
    for n in sorted(set(params.per_class)):
        if n > fewest:
            notes.append(f"{n} labels per class left out: the smallest class has {fewest} training images")
        else:
            asked.append((f"per_class_{n}", f"{n} per class", np.where(available > 0, n, 0)))
    for fraction in sorted(set(params.fraction)):
        exact = np.rint(fraction * available).astype(np.int64)
        counts = np.maximum(exact, available > 0)
        key, title = f"percent_{100 * fraction:g}", f"{100 * fraction:g} %"
        if (counts > exact).any():
            notes.append(f"{title} = {counts.sum():,} of {len(labels):,} labels: each class gives at least one")
        asked.append((key, title, counts))
    kept: list[Setting] = []
    for key, title, counts in asked:
        whole = np.array_equal(counts, available)
        if whole:
            notes.append(f"{title} = all {len(labels):,} labels: nothing is drawn, and ± is over test images")
        same = [one.title for one in kept if np.array_equal(one.counts, counts)]
        if same:
            notes.append(f"{title} takes the same labels as {same[0]}")
        kept.append(Setting(key, title, counts, whole))
    return kept, notes


def label_draw(labels: np.ndarray, counts: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """Training images of one draw, int64 ascending: `counts[c]` of every class c, the first in a seeded order."""
    import torch

    from selfsup.draw import Draw

    key = Draw(seed, draw, torch.arange(len(labels))).fork("few_label").key.numpy()
    order = np.lexsort((key, labels))  # by class, in a random order inside each
    sizes = np.bincount(labels, minlength=len(counts))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the class
    return np.sort(order[place < counts[labels[order]]])


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:
    """A metric for every setting: its mean test accuracy over the draws, with their standard deviation.

    Outcomes are bool [draws, test images], or [test images] where the setting takes all labels. Then the uncertainty is
    the standard error over test images. The table `settings` has what was chosen for each setting.
    """
    features, labels = labelled(features, labels)
    standardise = logistic.Standardise(features.train)
    validation, test = standardise(features.validation), standardise(features.test)
    kept, notes = settings(labels.train, params)
    metrics: dict[str, Metric] = {}
    table = Table(["setting", "labels", "c", "validation"], [])
    for setting in kept:
        fitted, readings = [], []
        for draw in range(1 if setting.all else params.draws):
            chosen = label_draw(labels.train, setting.counts, seed, draw)
            few = standardise(features.train[chosen])
            fitted.append(list(logistic.fits(few, labels.train[chosen], params.c)))
            readings.append([one.accuracy(validation, labels.validation) for one in fitted[-1]])
        means = np.mean(readings, axis=0)
        best = int(means.argmax())  # equal readings: the stronger regularisation
        hits = np.stack([by_c[best].predict(test)[:, 0] == labels.test for by_c in fitted])  # [draws, test images]
        count = int(setting.counts.sum())
        curve = Curve(logistic.CURVE, count, len(labels.train))
        metrics[setting.key] = right(hits[0] if setting.all else hits, labels.test, setting.title, curve=curve)
        table.rows.append([setting.key, count, fitted[0][best].c, float(means[best])])
    return Result(metrics, notes=notes, tables={"settings": table}, features=logistic.FEATURES)
