"""The parts of the page that show what protocols found, whichever they are."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsup.evaluation.balance import RATIO, uneven_line
from selfsup.features.store import MAJORITY
from selfsup.report import charts
from selfsup.report.headline import few
from selfsup.report.pictures import data_uri
from selfsup.report.scores import UNITS, Column, Scores

CLASSES_IN_MATRIX = 20
ROWS_OF_TABLE = 200


def notes(scores: Sequence[Scores]) -> list[str]:
    """What protocols left out or changed."""
    return [f"{one.title}: {line}" for one in scores if one.found for line in one.found.notes]


def left_out(scores: Sequence[Scores], known: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Rows that a protocol could not judge, with its reason; `known` are missing from all."""
    return [
        f"{one.title}: {names.get(row, row)} {why}"
        for one in scores
        for row, why in (one.found.missing.items() if one.found else ())
        if row not in known
    ]


def groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The groups of a table's columns, and how many columns each has."""
    return [(name, len(list(own))) for name, own in itertools.groupby(columns, lambda column: column.group)]


def balance_note(scores: Sequence[Scores], rows: Sequence[str], noun: str) -> list[str]:
    """What the majority row is, and where classes are uneven, what class-balanced accuracy is; `noun` names samples."""
    facts = next((one.balance for one in scores if one.balance), None)
    if facts is None:
        return []
    lines = []
    if MAJORITY in rows:
        lines.append(
            f"Majority class: the answer “{facts['commonest']}”, the commonest class of the training and validation "
            f"labels, in every column of accuracies. Its ± is over test {noun}."
        )
    if facts["uneven"]:
        line = uneven_line(facts)
        lines.append(
            f"{line[0].upper()}{line[1:]} (more than {RATIO} to 1). Balanced: class-balanced accuracy, the mean of the "
            f"accuracies within each of the {facts['test']['classes']} classes of the test split. Its ± and its spread "
            f"take the {noun} of each class as a sample of their own."
        )
    return lines


def choices(scores: Sequence[Scores]) -> list[tuple[str, dict[str, str]]]:
    """What was chosen on the validation split, by row."""
    found = []
    for one in scores:
        for key in dict.fromkeys(key for result in one.results.values() for key in result.choices):
            made = {row: result.choices[key] for row, result in one.results.items() if key in result.choices}
            title = next(iter(made.values())).title
            found.append((f"{one.title}: {title}", {row: f"{choice.value:g}" for row, choice in made.items()}))
    return found


def dots(scores: Sequence[Scores], names: dict[str, str]) -> str | None:
    """The headline of each protocol, one panel each; the majority row only where classes are uneven.

    Elsewhere it lies so far below the others that their differences would vanish.
    """
    panels = []
    for one in scores:
        if one.headline is None or few(one) or not next(iter(one.by_row(one.headline).values())).judged:
            continue
        metrics = {row: metric for row, metric in one.by_row(one.headline).items() if row != MAJORITY or one.uneven}
        first = metrics["method"]
        axis = ", ".join(word for word in (first.title, UNITS[first.unit], first.direction) if word)
        rows = {row: (each.value, each.spread) for row, each in metrics.items()}
        panels.append(charts.Panel(one.title, axis, first.unit, rows))
    return charts.dots(panels, names) if panels else None


def label_curves(scores: Sequence[Scores], names: dict[str, str]) -> list[tuple[str, str]]:
    """For every curve over the number of labels with more than one number its name and the chart."""
    curves: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for one in scores:
        for row, result in one.results.items():
            if row == MAJORITY and not one.uneven:
                continue
            for metric in result.metrics.values():
                if metric.curve and metric.unit == "percent":
                    point = (metric.curve.labels, metric.value, metric.spread)
                    curves.setdefault(metric.curve.name, {}).setdefault(row, []).append(point)
    drawn = []
    for name, series in curves.items():
        if len({labels for points in series.values() for labels, *_ in points}) > 1:
            drawn.append((name, charts.label_curve(series, names)))
    return drawn


def lines(scores: Sequence[Scores], names: dict[str, str]) -> list[tuple[str, str]]:
    """Title and chart of every plot that protocols made, with a line per row."""
    drawn = []
    for one in scores:
        for key in dict.fromkeys(key for result in one.results.values() for key in result.plots):
            rows = {row: result.plots[key] for row, result in one.results.items() if key in result.plots}
            if any(len(plot.points) > 1 for plot in rows.values()):
                drawn.append((next(iter(rows.values())).title, charts.lines(rows, names)))
    return drawn


@dataclass(frozen=True)
class Shown:
    """Pictures of one kind: of each row, or a single one where all rows have the same."""

    title: str
    rows: list[tuple[str | None, str, str]]  # row (None: of all), data URI, text for readers who do not see it


def protocol_pictures(scores: Sequence[Scores]) -> list[tuple[str, list[Shown]]]:
    """Titles of protocols that made pictures, and the pictures by kind."""
    found = []
    for one in scores:
        kinds = []
        for key in dict.fromkeys(key for result in one.results.values() for key in result.pictures):
            own = {row: result.pictures[key] for row, result in one.results.items() if key in result.pictures}
            uris = {row: _uri(one.protocol, row, key) for row in own}
            shared = len(own) > 1 and len(set(uris.values())) == 1
            rows = [(None if shared else row, uris[row], own[row].text) for row in list(own)[: 1 if shared else None]]
            kinds.append(Shown(next(iter(own.values())).title, rows))
        if kinds:
            found.append((one.title, kinds))
    return found


def _uri(protocol: str, row: str, key: str) -> str:
    return data_uri((Path("evaluations") / protocol / f"{row}.{key}.png").read_bytes())


def with_predictions(scores: Sequence[Scores]) -> Scores | None:
    """The first protocol that predicted a class for every labelled test image."""
    return next((one for one in scores if one.results and one.results["method"].predicted is not None), None)


def confusion_matrix(scores: Scores | None, classes: Sequence[str]) -> list[list[tuple[int, float]]] | None:
    """Counts and shares of each actual class, [actual][predicted]; None with too many classes or no predictions."""
    predicted = scores.results["method"].predicted if scores and scores.results else None
    if scores is None or scores.found is None or scores.found.label is None or predicted is None:
        return None
    if len(classes) > CLASSES_IN_MATRIX:
        return None
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (scores.found.label, predicted), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [list(zip(*row, strict=True)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]


def protocol_tables(scores: Sequence[Scores], names: dict[str, str]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables that protocols wrote themselves: title, header and the first rows, numbers to four digits."""
    found = []
    for one in scores:
        for name in one.found.own_tables if one.found else []:
            with (Path("evaluations") / one.protocol / f"{name}.csv").open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            shown = [[names.get(row, row), *map(_short, cells)] for row, *cells in rows[:ROWS_OF_TABLE]]
            found.append((f"{one.title}: {name}", header, shown))
    return found


def _short(cell: str) -> str:
    """A cell of a CSV file for the page."""
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d{4,}(e-?\d+)?", cell) else cell
