"""From the runs of a comparison to what they tell: rows, columns, paired differences, groups, ranks and sentences.

Runs are judged in blocks of equal conditions: rows of different blocks are never ranked together. In each column all
pairs of rows are tested (`pairs`, `statistics`); groups, ranks and sentences (`answers`) follow from these tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from selfsup.compare import answers, lines, pairs, statistics
from selfsup.compare.comparison import Comparison, Run
from selfsup.compare.judgement import HEADLINES, Block, Column, Judgement, Pair, Score
from selfsup.compare.lines import Line
from selfsup.compare.pairs import Figure
from selfsup.evaluation.result import BALANCED


def judge(comparison: Comparison) -> Judgement:
    """Judge all runs, in blocks of equal conditions, the largest first. A comparison without runs has no block."""
    blocks = []
    for runs in lines.blocks(comparison.runs):
        found = lines.lines(runs, comparison.rows)
        columns = [column(found, *chosen) for chosen in _columns(runs)]
        rows = [line.row for line in found]
        protocols = {name: digest for run in runs for name, digest in run.conditions.protocols.items()}
        conditions = replace(runs[0].conditions, protocols=protocols)
        blocks.append(Block(conditions, runs, rows, columns, answers.of_block(runs, rows, columns)))
    return Judgement(blocks, answers.of_comparison(blocks))


def _columns(runs: Sequence[Run]) -> Iterator[tuple[Figure, bool]]:
    """The columns, and whether each is a headline: protocols and metrics in the order in which they are found."""
    metrics: dict[str, dict[str, bool]] = {}  # and whether a table shows the class-balanced one
    uneven = set()
    for run in runs:
        for name, found in run.found.items():
            uneven |= {name} if found.balance.get("uneven") else set()
            for result in found.results.values():
                judged = {key: one for key, one in result.metrics.items() if one.judged}  # costs are never ranked
                own = {key: bool(one.balanced) and one.answers == 1 for key, one in judged.items()}
                metrics.setdefault(name, {}).update(own)
    having = [name for name, keys in metrics.items() if keys]
    headlines = [name for name in HEADLINES if name in having] or having[:1]
    for name in having:
        for key, balanced in metrics[name].items():
            first = name in headlines and key == next(iter(metrics[name]))
            yield Figure(name, key, False), first
            if balanced and name in uneven:
                yield Figure(name, key, True), first


def column(found: Sequence[Line], figure: Figure, headline: bool) -> Column:
    """The figure of all lines, all their differences, groups and ranks."""
    metrics = {
        line.row.key: {seed: metric for seed in line.runs if (metric := figure.of(line, seed))} for line in found
    }
    having = [line for line in found if metrics[line.row.key]]
    values = {line.row.key: {seed: figure.value(one) for seed, one in metrics[line.row.key].items()} for line in having}
    first = next(iter(metrics[having[0].row.key].values()))
    tested = pairs.tests(having, figure)
    corrected = pairs.corrected(tested, len(having), first.higher_is_better)
    return Column(
        key=f"{figure.protocol}.{figure.metric}{BALANCED if figure.balanced else ''}",
        protocol=figure.protocol,
        metric=figure.metric,
        group=next(one.title for run in having[0].runs.values() if (one := run.found.get(figure.protocol))),
        title=f"{first.title}, class-balanced" if figure.balanced else first.title,
        unit=first.unit,
        higher_is_better=first.higher_is_better,
        balanced=figure.balanced,
        headline=headline,
        curve=first.curve,
        scores=scores(having, values, corrected, first.higher_is_better),
        missing={line.row.key: _why_not(line, figure.protocol) for line in found if line not in having},
        pairs=corrected,
        covers=pairs.covers(tested, figure.protocol),
    )


def scores(
    found: Sequence[Line], values: Mapping[str, Mapping[int, float]], tested: Sequence[Pair], higher_is_better: bool
) -> dict[str, Score]:
    """Mean and standard deviation over seeds of each row, letters over all rows, rank intervals over methods."""
    means = {key: float(np.mean([*own.values()])) for key, own in values.items()}
    ordered = sorted(means, key=lambda key: -means[key] if higher_is_better else means[key])
    methods = [line.row.key for line in found if not line.row.baseline]
    marks, ranks = {}, {}
    if any(np.isfinite(one.low) for one in tested):
        place, inner = ({key: i for i, key in enumerate(keys)} for keys in (ordered, methods))
        apart = [one for one in tested if one.better]
        letters = statistics.letters(len(ordered), [(place[one.first], place[one.second]) for one in apart])
        marks = dict(zip(ordered, letters, strict=True))
        won = [(one.better, one.second if one.better == one.first else one.first) for one in apart]
        better = [(inner[a], inner[b]) for a, b in won if a in inner and b in inner]
        ranks = dict(zip(methods, statistics.rank_intervals(len(methods), better), strict=True))
    return {
        key: Score(
            mean=means[key],
            deviation=float(np.std([*own.values()], ddof=1)) if len(own) > 1 else None,
            values=own,
            letters=marks.get(key, ""),
            ranks=ranks.get(key),
        )
        for key, own in values.items()
    }


def _why_not(line: Line, protocol: str) -> str:
    """Why a row has no figure in a protocol."""
    for run in line.runs.values():
        found = run.found.get(protocol)
        reason = run.skipped.get(protocol) or (found.missing.get(line.row.kind) if found else None)
        if reason:
            return reason
    return "the protocol has no such figure of this row"
