"""How far a linear probe of clean features holds on corrupted, turned, scaled and shifted test images.

Hendrycks & Dietterich 2019, arXiv:1903.12261: `corruptions` has what each corruption is. The probe is that of the
protocol `linear`: it is fitted on clean images, and its C is chosen on clean validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from selfsup.config import Strict, choose
from selfsup.draw import epoch_order
from selfsup.evaluation import logistic
from selfsup.evaluation.corruptions import CORRUPTIONS, corrupted, moved
from selfsup.evaluation.networks import Images, ImageSplits
from selfsup.evaluation.result import Choice, Metric, Plot, Result, Table, labelled, right
from selfsup.features.store import Splits

TITLE = "robustness"
NEEDS = {"features", "encoder", "images", "labels"}
GEOMETRY = {"rotation": "rotations", "scale": "scales", "shift": "shifts"}  # kind -> the parameter with its amounts
RIVAL = "supervised"

Change = Callable[[Tensor, Tensor], Tensor]  # images [B 3 S S], ids [B] -> images


class Params(Strict):
    c: Annotated[list[PositiveFloat], Field(min_length=1)]  # inverse regularisation, chosen on clean validation images
    corruptions: Annotated[list[str], Field(min_length=1)]  # of the 15
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)]
    rotations: list[Annotated[float, Field(ge=0, le=180)]]  # degrees, to either side
    scales: list[PositiveFloat]  # factors
    shifts: list[Annotated[float, Field(ge=0, lt=1)]]  # shares of the side, in any direction
    images: PositiveInt | None  # test images that are corrupted, drawn by the seed; null: all

    @field_validator("corruptions")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            choose("corruptions", name, list(CORRUPTIONS))
        return names


def run(features: Splits, encoder: nn.Module, images: ImageSplits, labels: Splits, params: Params, seed: int) -> Result:
    """The metrics are test accuracies: `corrupted`, the mean over corruptions and severities, `clean`, and `rotation`,
    `scale` and `shift`, each a mean over its amounts. `relate` adds the mean corruption error, `mce`.

    The table `corruptions` has the accuracy of every corruption in every severity, `geometry` that of every amount.
    """
    probe, choice = _probe(*labelled(features, labels), params.c)
    ids = np.flatnonzero(labels.test >= 0)
    few = params.images is not None and params.images < len(ids)
    if few:
        ids = np.sort(ids[epoch_order(seed, 0, len(ids))[: params.images].numpy()])
    severities = sorted(set(params.severities))
    changes: dict[tuple[str, float], Change] = {
        (name, s): partial(_corrupt, name, s, seed) for name in params.corruptions for s in severities
    }
    for kind, parameter in GEOMETRY.items():
        changes |= {(kind, a): partial(_move, kind, a, seed) for a in sorted(set(getattr(params, parameter)))}
    hits = {key: np.empty(len(ids), bool) for key in [("clean", 0.0), *changes]}
    for place, batch, views in _batches(images.test, ids):
        hits["clean", 0.0][place] = probe(features.test[batch.numpy()]) == labels.test[batch.numpy()]
        for key, change in changes.items():
            hits[key][place] = probe(_encode(encoder, change(views, batch))) == labels.test[batch.numpy()]

    def mean(names: Sequence[str], title: str) -> Metric:
        chosen = [own for (name, _), own in hits.items() if name in names]
        metric = right(np.mean(chosen, axis=0), labels.test[ids], title)
        return replace(metric, balanced=None, answers=None) if few else metric

    metrics = {"corrupted": mean(params.corruptions, "corrupted"), "clean": mean(["clean"], "clean")}
    metrics |= {kind: mean([kind], kind) for kind, own in GEOMETRY.items() if getattr(params, own)}
    header = ["corruption", *(f"test at severity {s}" for s in severities), "test mean"]
    lines = [_line(name, [float(hits[name, s].mean()) for s in severities]) for name in params.corruptions]
    moves = [[kind, amount, float(own.mean())] for (kind, amount), own in hits.items() if kind in GEOMETRY]
    tables = {"corruptions": Table(header, lines)} | (
        {"geometry": Table(["change", "amount", "test"], moves)} if moves else {}
    )
    notes = [f"{len(ids):,} of {int((labels.test >= 0).sum()):,} test images are corrupted"] if few else []
    points = [(0.0, metrics["clean"].value)]
    points += [(float(s), float(np.mean([hits[n, s].mean() for n in params.corruptions]))) for s in severities]
    plot = Plot("Corrupted images, mean of all corruptions", "severity (0: clean)", "test accuracy", points)
    drawn = np.searchsorted(np.flatnonzero(labels.test >= 0), ids).tolist() if few else None
    return Result(
        metrics, {"c": choice}, notes, tables, features=logistic.FEATURES, plots={"severity": plot}, drawn=drawn
    )


def relate(results: dict[str, Result]) -> dict[str, Result]:
    """Add the mean corruption error, relative to the supervised baseline, to every row.

    mCE = mean over corruptions c of sum_s E(s, c) / sum_s E_supervised(s, c), E the error at severity s; 100 % is as
    bad as the supervised baseline (section 4.1 of the paper, which takes AlexNet). A corruption under which the
    baseline makes no error is left out.
    """
    if RIVAL not in results:
        note = "no mean corruption error: it is relative to the supervised baseline, which is missing"
        return {row: replace(one, notes=[*one.notes, note]) for row, one in results.items()}
    rival = _errors(results[RIVAL])
    related = {}
    for row, one in results.items():
        ratios = [own / rival[name] for name, own in _errors(one).items() if rival[name] > 0]
        notes = [*one.notes]
        if without := [name for name, error in rival.items() if not error > 0]:
            notes.append(f"left out of the mean corruption error, as supervised makes no error: {', '.join(without)}")
        metrics = dict(one.metrics)
        if ratios:
            title = "mean corruption error, supervised = 100"
            metrics["mce"] = Metric(float(np.mean(ratios)), title, "percent", higher_is_better=False)
        related[row] = replace(one, metrics=metrics, notes=notes)
    return related


def _errors(result: Result) -> dict[str, float]:
    """The error of every corruption, its mean over severities."""
    return {str(line[0]): 1 - float(line[-1]) for line in result.tables["corruptions"].rows}


def _line(name: str, accuracies: list[float]) -> list[str | float]:
    return [name, *accuracies, float(np.mean(accuracies))]


def _probe(features: Splits, labels: Splits, cs: Sequence[float]) -> tuple[Callable[[np.ndarray], np.ndarray], Choice]:
    """The linear probe of clean features, from features [N D] to classes int64 [N], and how its C was chosen."""
    standardise = logistic.Standardise(features.train)
    train, validation = standardise(features.train), standardise(features.validation)
    readings = {one.c: one.accuracy(validation, labels.validation) for one in logistic.fits(train, labels.train, cs)}
    best = max(readings, key=lambda c: (readings[c], -c))  # equal readings: the stronger regularisation
    joined, joined_labels = np.concatenate([train, validation]), np.concatenate([labels.train, labels.validation])
    (classifier,) = logistic.fits(joined, joined_labels, [best])
    return lambda x: classifier.predict(standardise(np.asarray(x)))[:, 0], Choice(best, "C", readings)


def _corrupt(name: str, severity: int, seed: int, views: Tensor, ids: Tensor) -> Tensor:
    return corrupted(views, name, severity, seed, ids)


def _move(kind: str, amount: float, seed: int, views: Tensor, ids: Tensor) -> Tensor:
    return moved(views, kind, amount, seed, ids)


@torch.no_grad()
def _encode(encoder: nn.Module, views: Tensor) -> np.ndarray:
    return encoder(views)["pooled"].float().cpu().numpy()


def _batches(images: Images, ids: np.ndarray, size: int = 256) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The places in `ids`, the ids int64 [B] and the views [B 3 S S] of a batch."""
    for start in range(0, len(ids), size):
        batch = torch.from_numpy(ids[start : start + size])
        yield slice(start, start + len(batch)), batch, images.take(batch)
