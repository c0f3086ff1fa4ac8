"""A comparison's answers as sentences: what is best, what beats the baselines, where few labels pay, at what cost.

A row is said to be ahead of another only where the difference is significant after the correction (`Pair.better`).
"""

from __future__ import annotations

import statistics as middle
from collections.abc import Iterator, Sequence
from itertools import combinations

from selfsup.compare import statistics
from selfsup.compare.comparison import Run
from selfsup.compare.judgement import HEADLINES, Block, Column, Row, Score, Sentence
from selfsup.compare.statistics import ALPHA
from selfsup.evaluation.result import BALANCED, Unit
from selfsup.features.store import MAJORITY
from selfsup.report.scores import number, with_unit

LISTED = 6  # names that a sentence lists, before it counts the others
LEADS = (
    "Linear and kNN probes speak for all protocols here: on the data themselves they predict best how a representation "
    "does elsewhere (arXiv:2407.12210)."
)
LABELLED = "supervised"  # the baseline that saw labels


def of_comparison(blocks: Sequence[Block]) -> list[Sentence]:
    """On the comparison as a whole: whether there is anything to judge, and in how many blocks."""
    found = []
    if not blocks:
        found.append(Sentence("conditions", "No run of this comparison has finished: there is nothing to judge yet."))
    if len(blocks) > 1:
        found.append(
            Sentence(
                "conditions",
                f"The runs were made under {len(blocks)} different conditions. They stand in blocks of their own, and "
                "rows of different blocks are not ranked together.",
            )
        )
    return found


def of_block(runs: Sequence[Run], rows: Sequence[Row], columns: Sequence[Column]) -> list[Sentence]:
    """The answers for a block, in the order in which a reader asks."""
    methods = [row for row in rows if not row.baseline]
    first = [one for one in columns if one.headline and any(row.key in one.scores for row in methods)]
    few = [one for one in columns if one.curve and one.curve.few and not _has_balanced(one, columns)]
    found = [Sentence("best", LEADS)] if {one.protocol for one in first} == set(HEADLINES) else []
    found += [Sentence("best", text) for one in first for text in _best(one, methods)]
    found += [Sentence("baselines", text) for one in first for text in _against_baselines(one, rows)]
    found += [Sentence("few labels", text) for text in _few_labels(few, rows)]
    found += [Sentence("cost", text) for text in _cost(runs, first, methods)]
    found += [Sentence("seeds", text) for text in _seeds(methods, first)]
    found += [Sentence("decide", text) for one in first for text in _decide(one, methods)]
    return [*(Sentence("conditions", text) for text in _backbones(methods)), *found]


def _has_balanced(column: Column, columns: Sequence[Column]) -> bool:
    return any(one.key == f"{column.key}{BALANCED}" for one in columns)


def _backbones(methods: Sequence[Row]) -> Iterator[str]:
    """That methods have several backbones."""
    names = sorted({row.backbone for row in methods})
    if len(names) > 1:
        counts = ", ".join(f"{name}: {sum(row.backbone == name for row in methods)}" for name in names)
        yield (
            f"The methods have different backbones ({counts}). A difference between them is not one of methods alone: "
            "compare gains over random weights of the same backbone."
        )


def _where(column: Column) -> str:
    direction = "" if column.higher_is_better else " (lower is better)"
    group = column.group[0].upper() + column.group[1:] if column.group.split()[0].islower() else column.group
    return f"{group}, {column.title}{direction}"


def figure(score: Score, unit: Unit) -> str:
    """`98.7 ± 0.4 %`: mean and standard deviation over seeds."""
    if score.deviation is None:
        return with_unit(score.mean, unit)
    return with_unit(score.mean, unit).replace(
        number(score.mean, unit), f"{number(score.mean, unit)} ± {number(score.deviation, unit)}"
    )


def ranked(column: Column, rows: Sequence[Row]) -> list[Row]:
    """The rows that have a figure in the column, best mean first."""
    sign = -1 if column.higher_is_better else 1
    return sorted((row for row in rows if row.key in column.scores), key=lambda row: sign * column.scores[row.key].mean)


def best_group(column: Column, methods: Sequence[Row]) -> list[Row]:
    """The methods that no method is significantly better than, best mean first.

    Where rows have different seeds, each may be behind another: then the one with the best mean.
    """
    order = ranked(column, methods)
    return [row for row in order if (column.scores[row.key].ranks or (1, 1))[0] == 1] or order[:1]


def named(rows: Sequence[Row]) -> str:
    """`a, b and c`, or the first few and how many others."""
    titles = [row.title for row in rows]
    if len(titles) > LISTED:
        titles = [*titles[: LISTED - 1], f"{len(titles) - LISTED + 1} others"]
    return " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)


def _best(column: Column, methods: Sequence[Row]) -> Iterator[str]:
    """The group of the best, and who leads it."""
    order, group = ranked(column, methods), best_group(column, methods)
    lead, score = group[0], column.scores[group[0].key]
    reached = f"{lead.title} reaches {figure(score, column.unit)}"
    if len(order) == 1:
        yield f"{_where(column)}: {reached}; there is no other method to compare with."
    elif score.ranks is None:
        yield f"{_where(column)}: {reached}, the best mean. {column.covers}"
    elif len(group) == 1:
        rest = [row for row in order if row != lead]
        others = f"each of the other {len(rest)} methods" if len(rest) > 1 else rest[0].title
        ahead = f"ahead of {others}"
        if not all(_ahead(column, lead, row) for row in rest):
            ahead = "the only method that no other is ahead of"
        yield f"{_where(column)}: {lead.title} is best with {figure(score, column.unit)}, {ahead}."
    else:
        rest = group[1:]
        every = "No method can be told apart from the best. " if len(group) == len(order) else ""
        yield (f"{_where(column)}: no single best. {every}{reached}; {named(rest)} cannot be told apart from it.")


def _ahead(column: Column, row: Row, rival: Row) -> bool | None:
    """Whether the row is significantly better than the rival; None where the two have no difference."""
    pair = column.pair(row.key, rival.key)
    return None if pair is None else pair.better == row.key


def _fits(row: Row, rival: Row) -> bool:
    """Whether a baseline is one of this method's own backbone."""
    return rival.backbone in ("", row.backbone)


def _against_baselines(column: Column, rows: Sequence[Row]) -> Iterator[str]:
    """Whether anything beats each baseline, a sentence each; on the majority only where some method does not."""
    methods = [row for row in ranked(column, rows) if not row.baseline]
    for rival in (row for row in rows if row.baseline and row.key in column.scores):
        known = [
            (row, ahead) for row in methods if _fits(row, rival) and (ahead := _ahead(column, row, rival)) is not None
        ]
        if not known:
            continue
        beat = [row for row, ahead in known if ahead]
        behind = [row for row, _ in known if _ahead(column, rival, row)]
        level = [row for row, ahead in known if not ahead and row not in behind]
        if rival.kind == MAJORITY and len(beat) == len(known):
            continue
        reached = f"{rival.title} ({figure(column.scores[rival.key], column.unit)})"
        beats, lags = ("beats it", "beat it"), ("is behind it", "are behind it")
        every = len(known)
        parts = [_count(behind, every, lags), *_level(level), *_count_if(beat, every, beats)]
        if rival.kind != LABELLED:
            parts = [_count(beat, every, beats), *_level(level), *_count_if(behind, every, lags)]
        yield f"{_where(column)}: {reached}: {'; '.join(parts)}."


def _count(rows: Sequence[Row], known: int, verbs: tuple[str, str]) -> str:
    """`no method beats it`, `a beats it`, `all 5 methods beat it`, `3 of 5 methods beat it (a, b and c)`."""
    if len(rows) < 2 or known == 1:
        return f"{named(rows) if rows else 'no method'} {verbs[0]}"
    if len(rows) == known:
        return f"{'both' if known == 2 else f'all {known}'} methods {verbs[1]}"
    return f"{len(rows)} of {known} methods {verbs[1]} ({named(rows)})"


def _count_if(rows: Sequence[Row], known: int, verbs: tuple[str, str]) -> list[str]:
    return [_count(rows, known, verbs)] if rows else []


def _level(rows: Sequence[Row]) -> list[str]:
    return [f"{named(rows)} cannot be told apart from it"] if rows else []


def _few_labels(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
    """At which numbers of labels methods are ahead of every baseline that was trained without labels."""
    parts = []
    for column in columns:
        rivals = [row for row in rows if row.baseline and row.kind != LABELLED and row.key in column.scores]
        methods = [row for row in ranked(column, rows) if not row.baseline]
        own = {row.key: [rival for rival in rivals if _fits(row, rival)] for row in methods}
        judged = [row for row in methods if own[row.key]]
        if not judged:
            continue
        pays = [row for row in judged if all(_ahead(column, row, rival) for rival in own[row.key])]
        best = f" (best mean: {pays[0].title}, {figure(column.scores[pays[0].key], column.unit)})" if pays else ""
        parts.append(f"at {column.title} {len(pays) or 'none'} of {len(judged)}{best}")
    if parts:
        yield f"With few labels, methods ahead of all baselines that saw no labels: {'; '.join(parts)}."


def _cost(runs: Sequence[Run], columns: Sequence[Column], methods: Sequence[Row]) -> Iterator[str]:
    """Seconds of pretraining: all, the range, and the cheapest of the best group."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if "seconds" in run.times:
            seconds.setdefault(run.row, []).append(float(run.times["seconds"]))
    if not seconds:
        return
    medians = {row: middle.median(own) for row, own in seconds.items()}
    low, high = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    total = sum(map(sum, seconds.values()))
    count = sum(map(len, seconds.values()))
    text = f"Pretraining took {_duration(total)} for {count} run{'s' * (count > 1)}"
    if low != high:
        text += f", from {_duration(medians[low])} ({low}) to {_duration(medians[high])} ({high}) per run"
    for column in columns[:1]:
        group = [row for row in best_group(column, methods) if row.key in medians]
        if len(group) > 1:
            cheap = min(group, key=lambda row: medians[row.key])
            text += f". Of the methods that cannot be told apart from the best in {column.group}, {cheap.title} is the "
            text += f"cheapest with {_duration(medians[cheap.key])}"
    yield f"{text}."


def size(difference: float, unit: Unit) -> str:
    """`1.2 points`: how large a difference is."""
    return with_unit(abs(difference), "points" if unit == "percent" else unit)


def _duration(seconds: float) -> str:
    """`148 s`, `12 min`, `3.5 h`."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _seeds(methods: Sequence[Row], columns: Sequence[Column]) -> Iterator[str]:
    """What the number of seeds cannot tell."""
    most = max(len(row.seeds) for row in methods)
    if most == 1:
        yield (
            "Each method has one seed. One seed does not show how far a method's figure moves from seed to seed. "
            "Intervals do not cover other seeds, so a difference may be one of seeds and not of methods. Add seeds "
            "before you choose."
        )
    elif most == 2:
        yield (
            "Two seeds tell little of the deviation between seeds: intervals are wide, and few rows can be told apart. "
            "A third seed narrows the intervals most."
        )
    if fewer := [row for row in methods if len(row.seeds) < most]:
        have = "have" if len(fewer) > 1 else "has"
        yield f"{named(fewer)} {have} fewer seeds than others. A pair is compared over the seeds that both rows have."
    for column in columns[:1]:
        for one, two in combinations([row for row in methods if row.key in column.scores], 2):
            if column.pair(one.key, two.key) is None:
                yield f"{one.title} and {two.title} have no seed in common, so nothing is known of their difference."


def _decide(column: Column, methods: Sequence[Row]) -> Iterator[str]:
    """How many more seeds would decide the leading pair."""
    order = ranked(column, methods)
    pair = column.pair(order[0].key, order[1].key) if len(order) > 1 else None
    if pair is None or pair.better or column.scores[order[0].key].ranks is None:
        return
    first, second = order[0].title, order[1].title
    lead = f"{_where(column)}: {first} and {second} differ by {size(pair.mean, column.unit)}"
    if pair.components is None:
        yield f"{lead}. How many seeds would decide it, one seed cannot tell."
        return
    needed = statistics.seeds_needed(pair.components, ALPHA / sum(one.better is None for one in column.pairs))
    now = len(pair.seeds)
    condition = "if the difference and the deviations seen so far are the true ones (power 80 %, after the correction)"
    if pair.mean == 0:
        yield f"{_where(column)}: {first} and {second} have the same mean. No number of seeds is known to decide."
    elif needed is None:
        yield f"{lead}. No number of seeds would decide it, {condition}: the test images limit it."
    elif needed > statistics.MOST_SEEDS:
        yield f"{lead}. More than {statistics.MOST_SEEDS:,} seeds would be needed to decide it, {condition}."
    elif needed <= now:
        yield f"{lead}. {now} seeds should have been enough to decide it, {condition}: it may well be smaller."
    else:
        more = f"{needed - now} more seed{'s' * (needed - now > 1)}"
        yield f"{lead}. {more}, {needed} in all, would decide it, {condition}."
