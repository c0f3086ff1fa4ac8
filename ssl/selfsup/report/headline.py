"""What the protocols found, as sentences: a winner is named only where its lead exceeds its spread.

The first of `evaluation.protocols` speaks for all: its first metric. A protocol with points of a curve over the number
of labels has a sentence of its own. With uneven classes, what accuracy hides is said, and whether few labels pay is
judged by class-balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfsup.evaluation.balance import uneven_line
from selfsup.evaluation.compare import paired, rank
from selfsup.evaluation.result import Metric
from selfsup.features.store import MAJORITY
from selfsup.report.scores import NAMES, Scores, beyond, lead, with_unit


def headline(scores: Sequence[Scores], name: str) -> list[str]:
    """Who won, whether pretraining beats a constant answer and raw pixels, and whether few labels pay.

    Empty where no protocol was run. `name` is the method's.
    """
    first = next((one for one in scores if one.headline and not few(one)), None)
    sentences = []
    if first is not None and first.headline is not None:
        metrics = first.by_row(first.headline)
        sentences.append(_winner(first, metrics, name))
        sentences.append(_against_majority(first, metrics, name))
        if first.uneven and metrics["method"].balanced:
            sentences.append(_balanced(first, metrics["method"], name))
        sentences.append(_against_pixels(metrics, name))
    sentences += [_few_labels(one, name) for one in scores if few(one)]
    return [sentence for sentence in sentences if sentence]


def few(scores: Scores) -> bool:
    """Whether a protocol's headline takes fewer labels than there are."""
    first = scores.by_row(scores.headline).get("method") if scores.headline else None
    return first is not None and first.curve is not None and first.curve.few


def _winner(scores: Scores, metrics: dict[str, Metric], name: str) -> str:
    own = metrics["method"]
    direction = "" if own.higher_is_better else " (lower is better)"
    title = _capital(scores.title) if scores.title.split()[0].islower() else scores.title  # not of kNN
    where = f"{title}, {own.title}{direction}"
    ranking = rank(_outcomes(metrics), higher_is_better=own.higher_is_better)
    if ranking is None:
        if len(metrics) == 1:
            return f"{where}: {name} reaches {with_unit(own.value, own.unit)}, with no baseline beside it."
        every = ", ".join(f"{NAMES.get(row, name)} {with_unit(one.value, one.unit)}" for row, one in metrics.items())
        return f"{where}: {every}. The metric has no paired outcomes, so no difference has a spread."
    best, second = (NAMES.get(row, name) for row in (ranking.best, ranking.runner_up))
    reached, other = (with_unit(metrics[row].value, own.unit) for row in (ranking.best, ranking.runner_up))
    ahead = lead(ranking.difference, own.unit).lstrip("+-")
    if ranking.difference.exceeds:
        return f"{where}: {best} wins with {reached}, {ahead} ahead of {second}, more than the spread."
    within = beyond(ranking.difference)
    return f"{where}: no winner. {best} ({reached}) and {second} ({other}) differ by {ahead}, {within}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _outcomes(metrics: dict[str, Metric]) -> dict[str, np.ndarray]:
    return {row: one.outcomes for row, one in metrics.items() if one.outcomes is not None}


def _against_majority(scores: Scores, metrics: dict[str, Metric], name: str) -> str:
    """A sentence where the features tell no more than the commonest class does."""
    outcomes = _outcomes(metrics)
    if MAJORITY not in outcomes:
        return ""
    difference = paired(outcomes["method"], outcomes[MAJORITY], higher_is_better=metrics["method"].higher_is_better)
    if difference.ahead:
        return ""
    answer, one = scores.balance.get("commonest", ""), metrics[MAJORITY]
    return (
        f"{name} does not beat the majority class: answering “{answer}” for every sample is right for "
        f"{with_unit(one.value, one.unit)}; {name} differs by {lead(difference, one.unit)}, {beyond(difference)}."
    )


def _balanced(scores: Scores, own: Metric, name: str) -> str:
    """The class-balanced accuracy, and how far it is from the 1/K of any constant answer."""
    label = scores.found.label if scores.found else None
    if own.balanced is None or own.outcomes is None or label is None:
        return ""
    constant = label == np.bincount(label).argmax()  # class-balanced, any other constant answer does as well
    chance = paired(own.outcomes, constant, label)
    classes = scores.balance["test"]["classes"]
    return (
        f"{_capital(uneven_line(scores.balance))}. {name} reaches a class-balanced accuracy of "
        f"{with_unit(own.balanced.value, own.unit)}; any constant answer has {with_unit(1 / classes, own.unit)}: "
        f"{lead(chance, own.unit)}, {beyond(chance)}."
    )


def _against_pixels(metrics: dict[str, Metric], name: str) -> str:
    outcomes, own = _outcomes(metrics), metrics["method"]
    if not {"method", "pixels"} <= set(outcomes):
        return ""
    difference = paired(outcomes["method"], outcomes["pixels"], higher_is_better=own.higher_is_better)
    by = lead(difference, own.unit)
    if not difference.exceeds:
        return f"{name} does not beat raw pixels: {by}, {beyond(difference)}."
    if not difference.ahead:
        return f"{name} does not beat raw pixels: it is {by.lstrip('+-')} behind, more than the spread."
    return f"{name} beats raw pixels: {by}, more than the spread."


def _few_labels(scores: Scores, name: str) -> str:
    """At which numbers of labels the method is ahead of every baseline that was trained without labels."""
    rivals = [row for row in ("pixels", "random", MAJORITY) if row in scores.results]
    label = scores.found.label if scores.found and scores.uneven else None
    pays: list[str] = []
    not_so: list[str] = []
    for key, own in scores.results["method"].metrics.items():
        outcomes = _outcomes(scores.by_row(key))
        if "method" not in outcomes or not own.curve:
            continue
        better = own.higher_is_better
        leads = [paired(outcomes["method"], outcomes[row], label, better) for row in rivals if row in outcomes]
        if not leads:
            continue
        closest = (min if better else max)(leads, key=lambda difference: difference.mean)
        words = f"{own.title} ({lead(closest, own.unit)})"
        (pays if all(difference.ahead for difference in leads) else not_so).append(words)
    if not pays and not not_so:
        return ""
    names = ("all of " if len(rivals) > 1 else "") + " and ".join(
        ", ".join(NAMES[row] for row in rivals).rsplit(", ", 1)
    )
    by = " by class-balanced accuracy" if scores.uneven else ""
    if not pays:
        return f"With few labels it does not pay: {name} is nowhere ahead of {names} by more than the spread{by}."
    tail = f"; not at {', '.join(not_so)}" if not_so else ""
    return f"With few labels it pays{by}: {name} is ahead of {names} at {', '.join(pays)}{tail}."
