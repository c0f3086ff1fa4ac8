"""What the protocols found, as tables: a best figure is marked only where its lead exceeds its spread.

Where classes are uneven, accuracy rewards answering the commonest class. Then the class-balanced figures have a table
of their own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.evaluation import folder
from selfsup.evaluation.compare import Difference, rank
from selfsup.evaluation.protocols import Protocol
from selfsup.evaluation.result import Estimate, Metric, Result, Unit
from selfsup.features.store import MAJORITY, ROWS

NAMES = {"supervised": "supervised", "random": "random weights", "pixels": "raw pixels", MAJORITY: "majority class"}
WIDEST = 8  # columns of a table
UNITS: dict[Unit, str] = {"percent": "%", "points": "points", "seconds": "seconds", "none": "no unit"}


@dataclass(frozen=True)
class Scores:
    """One protocol as read from disk; `found` is None where it was skipped or not run, and `why_not` the reason."""

    protocol: str  # name of its file
    title: str
    found: folder.Found | None = None
    why_not: str | None = None

    @property
    def results(self) -> dict[str, Result]:
        """By row, in the order of every table."""
        return {row: self.found.results[row] for row in ROWS if row in self.found.results} if self.found else {}

    @property
    def metrics(self) -> list[str]:
        """Keys of the metrics that any row has."""
        return list(dict.fromkeys(key for result in self.results.values() for key in result.metrics))

    def by_row(self, key: str) -> dict[str, Metric]:
        """A metric of all rows that have it."""
        return {row: result.metrics[key] for row, result in self.results.items() if key in result.metrics}

    @property
    def headline(self) -> str | None:
        """The key of the protocol's first metric."""
        return next(iter(self.metrics), None)

    @property
    def balance(self) -> dict[str, Any]:
        """The facts of the class counts."""
        return self.found.balance if self.found else {}

    @property
    def uneven(self) -> bool:
        """One class has so many more images than another that accuracy needs the class-balanced one beside it."""
        return bool(self.balance.get("uneven"))


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""
    best: bool = False  # and ahead of the next by more than the spread


@dataclass(frozen=True)
class Column:
    group: str
    title: str
    cells: list[Cell | None]  # one per row of the table
    labels: str = ""  # how many labels, where they are few
    lower_is_better: bool = False


def read_scores(protocol: Protocol, method: str, origin: Mapping[str, Any]) -> Scores:
    """Read `metrics/evaluate/<protocol>.json` and `evaluations/<protocol>/` in the working folder.

    Figures of another method, or not computed from `origin` (as `Inputs.computed_from` has it), are left out.
    """
    name, title = protocol.name, protocol.title
    path = Path(f"metrics/evaluate/{name}.json")
    if not path.exists():
        return Scores(name, title, why_not="not run")
    written = json.loads(path.read_text(encoding="utf-8"))
    if why := stale(written, method, origin):
        why_not = f"left out, as its figures are {why}; run dvc repro {protocol.stage}"
        return Scores(name, title, why_not=why_not)
    if "skipped" in written[name]:
        return Scores(name, title, why_not=written[name]["skipped"])
    return Scores(name, title, folder.read(Path("evaluations") / name))


def stale(written: Mapping[str, Any], method: str, origin: Mapping[str, Any]) -> str:
    """What a metrics file's figures are of, if not of `method` and of all that is in `origin`; else empty."""
    before = written.get("computed_from")
    if before is None:
        return "of an earlier version, which did not note what they were computed from"
    if written["method"] != method:
        return f"of {written['method']}"
    rows = [row for row in ROWS if before["features"].get(row) != origin["features"].get(row)]
    other = [key for key in ("labels", "parameters") if before[key] != origin[key]]
    other += [f"features of {NAMES.get(row, method)}" for row in rows]
    return f"computed from other {', other '.join(other)}" if other else ""


def tables(scores: Sequence[Scores]) -> tuple[list[str], list[tuple[str, list[Column]]]]:
    """The rows of every table, and tables for each unit: what stands in the corner, and the columns.

    Where classes are uneven, the class-balanced figures follow in separate tables, and after them costs, which are not
    judged.
    """
    rows = [row for row in ROWS if any(row in one.results for one in scores)]
    plain: dict[Unit, list[Column]] = {}
    balanced: list[Column] = []
    costs: list[Column] = []
    for one in scores:
        for key in one.metrics:
            first = next(iter(one.by_row(key).values()))
            columns = plain.setdefault(first.unit, []) if first.judged else costs
            columns.append(_column(one, key, rows))
            if one.uneven and first.balanced and first.answers == 1:
                balanced.append(_column(one, key, rows, balanced=True))
    found = [(UNITS[unit], part) for unit, columns in plain.items() for part in _narrow(columns)]
    found += [("balanced, %", part) for part in _narrow(balanced)]
    return rows, found + [("cost", part) for part in _narrow(costs)]


def _narrow(columns: Sequence[Column]) -> list[list[Column]]:
    """Tables that fit on a page: as many protocols side by side as have `WIDEST` columns together, or a single one."""
    parts: list[list[Column]] = []
    for _, group in itertools.groupby(columns, lambda column: column.group):
        own = list(group)
        if parts and len(parts[-1]) + len(own) <= WIDEST:
            parts[-1].extend(own)
        else:
            parts.append(own)
    return parts


def _column(scores: Scores, key: str, rows: Sequence[str], balanced: bool = False) -> Column:
    metrics = scores.by_row(key)
    first = next(iter(metrics.values()))
    labels = scores.found.label if scores.found and balanced else None
    paired = {row: one.outcomes for row, one in metrics.items() if one.outcomes is not None}
    ranking = rank(paired, labels, first.higher_is_better)
    cells: list[Cell | None] = []
    for row in rows:
        if row not in metrics:
            cells.append(None)
            continue
        one: Metric | Estimate = metrics[row]
        if balanced:
            one = metrics[row].balanced or one
        spread = one.uncertainty.size if one.uncertainty else None
        best = ranking is not None and ranking.best == row and ranking.difference.exceeds
        cells.append(Cell(number(one.value, first.unit), _spread(spread, first.unit), best))
    return Column(scores.title, first.title, cells, _labels(first), not first.higher_is_better)


def _labels(metric: Metric) -> str:
    """How many labels a point of a curve takes: `all 12 labels`, `13 of 1,293 labels`."""
    if metric.curve is None:
        return ""
    count, every = metric.curve.labels, metric.curve.of
    return f"{count:,} of {every:,} labels" if metric.curve.few else f"all {every:,} labels"


def number(value: float, unit: Unit) -> str:
    """A value as tables have it: shares times 100, seconds to 0.1, what has no unit to three digits."""
    if unit == "none":
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{100 * value:.1f}" if unit in ("percent", "points") else f"{value:,.1f}"


def with_unit(value: float, unit: Unit) -> str:
    """`90.0 %`, `1.5 points`, `3.0 s`, `0.437`."""
    return f"{number(value, unit)}{ {'percent': ' %', 'points': ' points', 'seconds': ' s', 'none': ''}[unit] }"


def _spread(size: float | None, unit: Unit) -> str:
    """Nothing where a single image has no spread, or where draws that all agree tell nothing of it."""
    if size is None or not np.isfinite(size) or size < 1e-9:
        return ""
    if unit == "none":
        return f"{size:.2g}"
    smallest = 0.0005 if unit in ("percent", "points") else 0.05
    return number(size, unit) if size >= smallest else "< 0.1"


def lead(difference: Difference, unit: Unit) -> str:
    """`+1.2 ± 0.8 points`; without a spread where a single image gives none."""
    words = {"percent": " points", "points": " points", "seconds": " s", "none": ""}[unit]
    spread = f" ± {number(difference.spread, unit)}" if np.isfinite(difference.spread) else ""
    sign = "+" if difference.mean >= 0 else ""
    return f"{sign}{number(difference.mean, unit)}{spread}{words}"


def beyond(difference: Difference) -> str:
    """Whether a difference is more than its spread, in words."""
    if not np.isfinite(difference.spread):
        return "of a single test sample, which has no spread"
    return "more than the spread" if difference.exceeds else "within the spread"


def confusions(scores: Scores, classes: Sequence[str], most: int = 10) -> list[tuple[str, str, int]]:
    """The pairs of classes that the pretrained features confuse most: actual, predicted, how often."""
    if scores.found is None or scores.found.label is None:
        return []
    label, predicted = scores.found.label, scores.results["method"].predicted
    if predicted is None:
        return []
    wrong = predicted != label
    pairs, counts = np.unique(np.stack([label[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(classes[pairs[i][0]], classes[pairs[i][1]], int(counts[i])) for i in order]
