"""The tables of a comparison: which columns stand where, and what a cell shows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from selfsup.compare.judgement import Block, Column, Row, Score
from selfsup.evaluation import protocols
from selfsup.evaluation.result import Unit
from selfsup.report.scores import UNITS, number

DASH, OTHER = "–", "All other figures"


@dataclass(frozen=True)
class Cell:
    """A row's figure in a column, in words."""

    text: str
    spread: str = ""  # standard deviation over seeds
    letters: str = ""
    ranks: str = ""
    best: bool = False  # among the methods that may be the best one
    seeds: str = ""  # how many, where other rows have more
    why: str = ""  # of a dash
    note: int = 0  # number of the footnote that has `why`; 0: none
    value: float | None = None  # to sort by


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    row: Row
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """Columns over all rows: methods, then baselines."""

    title: str
    columns: Sequence[Column]
    methods: Sequence[Line]
    baselines: Sequence[Line]
    footnotes: Sequence[str]  # reasons of dashes; a cell's `note` counts from 1
    covers: Sequence[str]  # what intervals cover, each sentence once

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups of the columns, and how many columns each has."""
        return [(name, len(list(own))) for name, own in itertools.groupby(self.columns, lambda one: one.group)]

    @property
    def lines(self) -> list[Line]:
        return [*self.methods, *self.baselines]


@functools.cache
def measured(protocol: str, unit: Unit) -> bool:
    """Whether a figure is a measurement, such as a time, which differs between two equal runs."""
    return unit == "seconds" or (
        protocol in protocols.names() and not getattr(protocols.find(protocol), "repeatable", True)
    )


def tables(block: Block) -> list[Table]:
    """The table of main figures, with uneven classes that of class-balanced ones, and one of all other figures."""
    first = {column.protocol: column.key for column in reversed(block.columns) if not column.balanced}
    repeatable = [column for column in block.columns if not measured(column.protocol, column.unit)]
    plain = [column for column in repeatable if not column.balanced]
    main = [column for column in plain if column.key == first[column.protocol] or column.curve is not None]
    more = [column for column in plain if column not in main]
    balanced = [column for column in repeatable if column.balanced]
    parts = (
        ("How good are the features?", main),
        ("How good are they when each class counts alike?", balanced),
        (OTHER, more),
    )
    return [table(title, columns, block.rows) for title, columns in parts if columns]


def table(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """A table of these columns, with the reason of every dash as a footnote."""
    notes: dict[str, int] = {}
    lines = []
    for row in rows:
        cells = [cell(column, row) for column in columns]
        numbered = [notes.setdefault(one.why, len(notes) + 1) if one.why else 0 for one in cells]
        lines.append(Line(row, [_with_note(one, note) for one, note in zip(cells, numbered, strict=True)]))
    return Table(
        title,
        columns,
        [line for line in lines if not line.row.baseline],
        [line for line in lines if line.row.baseline],
        list(notes),
        list(dict.fromkeys(column.covers for column in columns if column.covers)),
    )


def _with_note(cell: Cell, note: int) -> Cell:
    return Cell(cell.text, why=cell.why, note=note) if note else cell


def cell(column: Column, row: Row) -> Cell:
    """A row's figure in a column; a dash with its reason where there is none."""
    score = column.scores.get(row.key)
    if score is None:
        return Cell(DASH, why=column.missing.get(row.key, "not measured for this row"))
    fewer = len(score.values) < max(len(one.values) for one in column.scores.values())
    count = len(score.values)
    return Cell(
        number(score.mean, column.unit),
        spread(score, column.unit),
        score.letters,
        f"{score.ranks[0]}–{score.ranks[1]}" if score.ranks and score.ranks[0] != score.ranks[1] else _rank(score),
        best=score.ranks is not None and score.ranks[0] == 1,
        seeds=f"{count} seed{'s' * (count != 1)}" if fewer and not row.baseline else "",
        value=score.mean,
    )


def _rank(score: Score) -> str:
    return str(score.ranks[0]) if score.ranks else ""


def spread(score: Score, unit: Unit) -> str:
    """The standard deviation over seeds; empty for one seed."""
    if score.deviation is None or not score.deviation > 1e-9:  # equal for all seeds, as raw pixels may be
        return ""
    return f"{score.deviation:.2g}" if unit == "none" else number(score.deviation, unit)


def unit_words(column: Column) -> str:
    """What stands below a column's title: its unit unless that is %, its direction unless higher is better, labels."""
    words = [] if column.unit == "percent" else [UNITS[column.unit]]
    words += [] if column.higher_is_better else ["lower is better"]
    words += [f"{column.curve.labels:,} labels"] if column.curve and column.curve.few else []
    return ", ".join(words)


def markdown(block: Block) -> str:
    """The main table, and with uneven classes the class-balanced one, as Markdown."""
    return "\n\n".join(_markdown(one) for one in tables(block) if one.title != OTHER)


def _markdown(one: Table) -> str:
    words = {column.key: f" ({words})" if (words := unit_words(column)) else "" for column in one.columns}
    head = ["", *(plain(f"{column.group}: {column.title}{words[column.key]}") for column in one.columns)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(one.columns)]
    for line in one.lines:
        lines.append("| " + " | ".join([plain(line.row.title), *map(_in_markdown, line.cells)]) + " |")
    notes = [f"[{i}] {plain(why)}" for i, why in enumerate(one.footnotes, start=1)]
    return "\n".join([f"**{one.title}**", "", *lines, *([""] if notes else []), *[f"- {note}" for note in notes]])


def _in_markdown(cell: Cell) -> str:
    text = cell.text + (f" ± {cell.spread}" if cell.spread else "")
    text = f"**{text}**" if cell.best else text
    text += f" <sup>{cell.letters}</sup>" if cell.letters else ""
    text += f" ({cell.seeds})" if cell.seeds else ""
    return text + (f" [{cell.note}]" if cell.note else "")


def plain(text: str) -> str:
    """Text that neither ends a cell of a Markdown table nor starts an HTML tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
