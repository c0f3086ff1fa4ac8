"""What a protocol needs and what it returns: figures that carry their own unit, direction and paired outcomes.

Nothing is read off a name. Names of metrics and choices are keys of `metrics/evaluate/<protocol>.json`; `flat` derives
the other keys of that file from the fields: `_se` and `_std`, `_balanced`, and the figure of each value tried.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict

from selfsup.evaluation.compare import accuracy, standard_error
from selfsup.evaluation.mapped import gathered
from selfsup.features.store import Splits

Need = Literal["features", "labels", "encoder", "images", "boxes", "masks"]
"""What a protocol may ask for: `run` gets each need as an argument of that name. `features` and `labels` are `Splits`
of arrays [N D] and [N] (-1: no label). `encoder` is the frozen network in evaluation mode, which maps images
[B 3 S S] in 0..1 to {"pooled": [B D], ...}, and `images` are the `networks.ImageSplits` that it sees. The pipeline does
not provide the other two yet."""

INSIDE = frozenset({"encoder", "images"})
"""Needs of protocols that look inside the frozen network: `evaluation.encoder_protocols` lists them."""

Unit = Literal["percent", "points", "seconds", "none"]
"""Of `percent` and `points` the value is a share, 0.5 for 50."""

Readings = dict[int, float] | dict[float, float]
"""A figure for each value that was tried."""

_ROWS = 8192  # copied at once
SUFFIX = {"images": "_se", "draws": "_std"}
BALANCED = "_balanced"


@dataclass(frozen=True)
class Uncertainty:
    """How far a value is off: its standard error over test images, or its standard deviation over draws."""

    size: float | None  # in the unit of the value; infinite or None: a single image tells nothing of it
    over: Literal["images", "draws"]


@dataclass(frozen=True)
class Estimate:
    """A value and its uncertainty."""

    value: float
    uncertainty: Uncertainty


@dataclass(frozen=True)
class Curve:
    """A metric's place on a curve over the number of labels: all points of one name make one line."""

    name: str
    labels: int  # labelled images that it takes
    of: int  # labelled images that there are

    @property
    def few(self) -> bool:
        """It takes fewer labels than there are."""
        return self.labels < self.of


@dataclass(frozen=True)
class Metric:
    """One figure of one representation."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    value: float
    title: str  # for readers, below the protocol's title
    unit: Unit = "percent"
    higher_is_better: bool = True
    uncertainty: Uncertainty | None = None
    outcomes: np.ndarray | None = None
    """The units that two representations are paired by, [test images] or [draws, test images]. Their mean is `value`.
    None: differences of this metric have no spread, so that no representation is ever reported as ahead."""
    balanced: Estimate | None = None  # the same with equal weight for each class; the outcomes are of labelled images
    answers: int | None = (
        None  # an outcome is whether the class is among this many answers; None: outcomes are something else
    )
    curve: Curve | None = None
    judged: bool = True  # false: a cost, which is shown and never ranked

    @property
    def spread(self) -> float:
        """The uncertainty; 0 where there is none."""
        return (self.uncertainty.size if self.uncertainty else None) or 0.0

    @property
    def direction(self) -> str:
        """Words for a reader, empty where more is better."""
        return "" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Choice:
    """A value chosen on the validation split from those of a parameter."""

    value: float
    title: str
    validation: Readings  # value -> what it was chosen by
    test: Readings = field(default_factory=dict)  # value -> the first metric with it


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file, which has the representation in a first column `row`."""

    header: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Plot:
    """A line of one representation; the page draws the lines of all rows in one chart."""

    title: str
    x: str  # titles of the axes
    y: str
    points: list[tuple[float, float]]
    unit: Unit = "percent"  # of y
    ticks: list[str] = field(default_factory=list)  # names of the points' places on the x axis; empty: numbers


@dataclass(frozen=True)
class Picture:
    """A picture of one representation; the page shows those of all rows under each other."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    title: str
    text: str  # what it shows, for readers who do not see it
    pixels: np.ndarray | None  # uint8 [H W 3]; None only while it is read from its file


class Unfit(Exception):
    """A representation that a protocol cannot judge. Its row is left out, and the message is the reason."""


@dataclass(frozen=True)
class Result:
    """What a protocol found for one representation; its first metric is its headline."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    metrics: dict[str, Metric]
    choices: dict[str, Choice] = field(default_factory=dict)  # by the name of the parameter
    notes: list[str] = field(default_factory=list)  # what was left out or changed, a line each
    tables: dict[str, Table] = field(default_factory=dict)  # by the name of the file, without .csv
    predicted: np.ndarray | None = None
    """The predicted class of every labelled test image, int64 [N]."""
    features: str = "as extracted"  # what was done to the features first
    plots: dict[str, Plot] = field(default_factory=dict)  # by a name of the protocol's
    pictures: dict[str, Picture] = field(default_factory=dict)  # by the name of the file, without the row and .png
    drawn: list[int] | None = None
    """Places, among the test images that took part, of those that the outcomes are of, ascending; None: of all."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a name that `flat` cannot keep apart from those that it derives."""
        for name in (*self.metrics, *self.choices, *self.tables, *self.plots, *self.pictures):
            if not re.fullmatch(r"[a-z][\w.]*", name) or name.endswith((*SUFFIX.values(), BALANCED)):
                raise ValueError(f"{name}: needs lower-case letters, digits and _; _se, _std, _balanced cannot end it")


def right(
    outcomes: np.ndarray, labels: np.ndarray, title: str, answers: int | None = 1, curve: Curve | None = None
) -> Metric:
    """A mean over images, plain and class-balanced, as a metric: `outcomes` in 0..1, [N] or [M N], `labels` int64 [N].

    Of an accuracy, outcomes are whether the class is among so many `answers`; None: they are something else.

    The uncertainty is the standard error over test images, or with several draws [M N] the deviation over them.
    """
    plain, balanced = (_estimate(outcomes, strata) for strata in (None, labels))
    return Metric(
        plain.value,
        title,
        uncertainty=plain.uncertainty,
        outcomes=outcomes,
        balanced=balanced,
        answers=answers,
        curve=curve,
    )


def _estimate(outcomes: np.ndarray, strata: np.ndarray | None) -> Estimate:
    shares = accuracy(outcomes, strata)
    if outcomes.ndim == 1:
        return Estimate(float(shares.mean()), Uncertainty(standard_error(outcomes, strata), "images"))
    return Estimate(float(shares.mean()), Uncertainty(float(shares.std(ddof=1)), "draws"))


def flat(result: Result) -> dict[str, float | None]:
    """The figures by key, as `metrics/evaluate/<protocol>.json` has them.

    Of each metric: `<key>`, `<key>_se` or `<key>_std`, and `<key>_balanced` with its own uncertainty. Of each choice:
    `<name>`, the chosen value, and `<first metric>_<name><value>` for each value whose test figure is known.
    """
    values: dict[str, float | None] = {}
    for key, metric in result.metrics.items():
        values |= _with_uncertainty(key, metric.value, metric.uncertainty)
        if metric.balanced:
            values |= _with_uncertainty(f"{key}{BALANCED}", metric.balanced.value, metric.balanced.uncertainty)
    for name, choice in result.choices.items():
        values[name] = choice.value
        first = next(iter(result.metrics))
        values |= {f"{first}_{name}{_number(value)}": found for value, found in choice.test.items()}
    return values


def own_keys(keys: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """Those of the `keys` that `flat` gave which are metrics; `parameters` are the protocol's, of which choices are."""
    first = keys[0] if keys else ""
    derived = "|".join(map(re.escape, (*SUFFIX.values(), BALANCED)))
    of_choices = "|".join(f"({re.escape(first)}_)?{re.escape(name)}[-+.e\\d]*" for name in parameters) or "$."
    return [key for key in keys if not re.search(rf"({derived})$", key) and not re.fullmatch(of_choices, key)]


def _with_uncertainty(key: str, value: float, uncertainty: Uncertainty | None) -> dict[str, float | None]:
    own: dict[str, float | None] = {key: value}
    return own if uncertainty is None else own | {f"{key}{SUFFIX[uncertainty.over]}": uncertainty.size}


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def labelled(features: Splits, labels: Splits) -> tuple[Splits, Splits]:
    """Drop the samples without a label (-1). Arrays in which all are labelled are passed on uncopied."""
    kept = [
        (x, y) if (y >= 0).all() else (_rows(x, np.flatnonzero(y >= 0)), y[y >= 0])
        for x, y in zip(features, labels, strict=True)
    ]
    return Splits(*(x for x, _ in kept)), Splits(*(y for _, y in kept))


def _rows(features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    parts = np.split(chosen, range(_ROWS, len(chosen), _ROWS))
    return gathered((features[part] for part in parts), len(chosen), features.shape[1])
