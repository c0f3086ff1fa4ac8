"""What a comparison is made of: finished runs, runs that could not be had, and what ranked runs must share.

A comparison is a table of rows (methods, or the settings of a study) over seeds. The engine fills it from DVC's
experiments, the statistics judge it, and the page, the Markdown table and the CSV file show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfsup.evaluation.folder import Found


@dataclass(frozen=True)
class Conditions:
    """What runs must share to be ranked together, each in words for readers: equal words, equal conditions."""

    data: str  # source, images per split, size
    budget: str  # epochs, batch size, precision
    code: str  # digest of the code that decides the weights, all methods aside
    protocols: Mapping[str, str]  # digest of each protocol's parameters and code, by its name


@dataclass(frozen=True)
class Run:
    """One finished experiment."""

    row: str  # of the table: the method, or a study's setting
    seed: int
    method: str
    backbone: str
    experiment: str  # DVC's name of it
    revision: str  # the git commit that DVC keeps it in
    command: str  # the line that reproduces it
    tracked: str | None  # the MLflow run, None where tracking was off
    conditions: Conditions
    images: str  # checksum of the shards: equal where the test images and the splits are the same
    found: Mapping[str, Found]  # by protocol; rows of a `Found` are `method` and the baselines
    skipped: Mapping[str, str]  # protocols without figures, with the reason
    pretrain: Mapping[str, Any]  # metrics/pretrain.json
    times: Mapping[str, Any]  # metrics/times/pretrain.json
    curve: Sequence[Mapping[str, float]]  # the rows of plots/pretrain.csv
    classes: Sequence[str] = ()  # names of the labels in `found`; () where they are not known
    readings: Mapping[str, float] = field(default_factory=dict)  # figures of no protocol, such as `features.tolerance`


@dataclass(frozen=True)
class Absent:
    """A run that the comparison asks for and that could not be had."""

    row: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Design:
    """What a study varies, and what its plots show."""

    paper: str | None
    expect: str  # what the paper found
    axis: str  # what the settings are
    show: Mapping[str, str]  # a plot per entry, title: reading, such as `knn.top1` or `run.seconds`
    cells: Mapping[str, tuple[str, str, str]]  # by row: series, setting, and the other setting of a pair, else the same
    pairs: bool = False  # a heat map of pairs instead of lines over the settings


@dataclass(frozen=True)
class Comparison:
    """All that is known of the runs that a comparison asks for."""

    name: str
    title: str
    rows: Sequence[str]  # in the order asked for
    seeds: Sequence[int]
    runs: Sequence[Run]
    absent: Sequence[Absent] = ()
    tuned: Mapping[str, int] = field(default_factory=dict)  # trials by row; a row that is not there was not tuned
    notes: Sequence[str] = ()  # whole sentences
    command: str = ""  # the line that made it
    design: Design | None = None  # of a study; None: the rows are methods
