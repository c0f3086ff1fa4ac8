"""What the protocols found, as tables and sentences: a winner is named only when its lead exceeds its spread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.evaluation.compare import Difference, paired, rank
from selfsup.evaluation.features import ROWS

NAMES = {"supervised": "supervised", "random": "random weights", "pixels": "raw pixels"}


@dataclass
class Scores:
    """One protocol as read from disk; without rows when it was skipped or not run."""

    protocol: str
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by row
    outcomes: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by row and metric: paired units
    predicted: dict[str, np.ndarray] = field(default_factory=dict)  # by row
    label: np.ndarray | None = None
    details: dict[str, Any] = field(default_factory=dict)
    why_not: str | None = None


@dataclass(frozen=True)
class Cell:
    text: str  # percent
    spread: str = ""
    best: bool = False  # and ahead of the next by more than the spread


@dataclass(frozen=True)
class Column:
    group: str
    title: str
    cells: list[Cell | None]  # one a row of the table


def read_scores(protocol: str) -> Scores:
    """Read `metrics/evaluate/<protocol>.json` and `evaluations/<protocol>/` in the working folder."""
    metrics_path, folder = Path(f"metrics/evaluate/{protocol}.json"), Path("evaluations") / protocol
    if not metrics_path.exists():
        return Scores(protocol, why_not="not run")
    found = json.loads(metrics_path.read_text(encoding="utf-8"))[protocol]
    if "skipped" in found:
        return Scores(protocol, why_not=found["skipped"])
    scores = Scores(protocol, {row: found[row] for row in ROWS if row in found})
    scores.details = json.loads((folder / "details.json").read_text(encoding="utf-8"))
    with np.load(folder / "outcomes.npz", allow_pickle=False) as arrays:
        scores.label = arrays["label"]
        for row in scores.metrics:
            own = {name.removeprefix(f"{row}/"): arrays[name] for name in arrays if name.startswith(f"{row}/")}
            if "predicted" in own:
                scores.predicted[row] = own.pop("predicted")
            scores.outcomes[row] = own
    return scores


def setting_title(key: str) -> str:
    """`per_class_5` -> `5 a class`, `percent_10` -> `10 %`."""
    kind, _, value = key.rpartition("_")
    return f"{value} a class" if kind == "per_class" else f"{value} %"


def columns(scores: Sequence[Scores]) -> tuple[list[str], list[Column]]:
    """The rows of the table, and its columns: every outcome of every protocol."""
    rows = [row for row in ROWS if any(row in one.metrics for one in scores)]
    titles = {"knn": "kNN", "linear": "linear, all labels", "few_label": "linear, few labels"}
    found = []
    for one in scores:
        keys = list(dict.fromkeys(key for row in rows for key in one.outcomes.get(row, {})))
        for key in keys:
            title = key.replace("top", "top-") if key.startswith("top") else setting_title(key)
            found.append(Column(titles.get(one.protocol, one.protocol), title, _cells(one, key, rows)))
    return rows, found


def _cells(scores: Scores, key: str, rows: Sequence[str]) -> list[Cell | None]:
    outcomes = {row: scores.outcomes[row][key] for row in rows if key in scores.outcomes.get(row, {})}
    ranking = rank(outcomes)
    cells: list[Cell | None] = []
    for row in rows:
        if row not in outcomes:
            cells.append(None)
            continue
        spread = scores.metrics[row].get(f"{key}_se", scores.metrics[row].get(f"{key}_std"))
        best = ranking is not None and ranking.best == row and ranking.difference.exceeds
        cells.append(Cell(percent(scores.metrics[row][key]), "" if spread is None else percent(spread), best))
    return cells


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: Difference) -> str:
    """`+1.2 ± 0.8 points`."""
    return f"{100 * difference.mean:+.1f} ± {100 * difference.spread:.1f} points"


def headline(scores: Sequence[Scores], name: str) -> list[str]:
    """Who won, whether pretraining beats raw pixels with all labels, and whether it pays with few."""
    by = {one.protocol: one for one in scores if one.metrics}
    sentences = []
    full = next((by[protocol] for protocol in ("linear", "knn") if protocol in by), None)
    if full is not None:
        outcomes = {row: full.outcomes[row]["top1"] for row in full.metrics}
        where = "Linear probe with all labels" if full.protocol == "linear" else "kNN with all labels"
        sentences.append(_winner(where, outcomes, name))
        if "pixels" in outcomes:
            sentences.append(_against_pixels(paired(outcomes["method"], outcomes["pixels"]), name))
    if "few_label" in by:
        sentences.append(_few_labels(by["few_label"], name))
    return [sentence for sentence in sentences if sentence]


def _winner(where: str, outcomes: dict[str, np.ndarray], name: str) -> str:
    ranking = rank(outcomes)
    if ranking is None:
        return f"{where}: {name} reaches {percent(float(outcomes['method'].mean()))} %, with no baseline beside it."
    best, second = (NAMES.get(row, name) for row in (ranking.best, ranking.runner_up))
    share = percent(float(outcomes[ranking.best].mean()))
    lead = points(ranking.difference).lstrip("+")
    if ranking.difference.exceeds:
        return f"{where}: {best} wins with {share} %, {lead} ahead of {second}, more than the spread."
    other = percent(float(outcomes[ranking.runner_up].mean()))
    return f"{where}: no winner. {best} ({share} %) and {second} ({other} %) differ by {lead}, within the spread."


def _against_pixels(difference: Difference, name: str) -> str:
    if not difference.exceeds:
        return f"With all labels {name} does not beat raw pixels: {points(difference)}, within the spread."
    if difference.mean < 0:
        behind = points(difference).lstrip("-")
        return f"With all labels {name} does not beat raw pixels: it is {behind} behind, more than the spread."
    return f"With all labels {name} beats raw pixels: {points(difference)}, more than the spread."


def _few_labels(scores: Scores, name: str) -> str:
    rivals = [row for row in ("pixels", "random") if row in scores.outcomes]
    own = scores.outcomes["method"]
    if not rivals or not own:
        return ""
    names = " and ".join(NAMES[row] for row in rivals)
    pays: list[str] = []
    not_so: list[str] = []
    for key in own:
        closest = min((paired(own[key], scores.outcomes[row][key]) for row in rivals), key=lambda d: d.mean)
        ahead = all(d.exceeds and d.mean > 0 for d in (paired(own[key], scores.outcomes[row][key]) for row in rivals))
        (pays if ahead else not_so).append(f"{setting_title(key)} ({points(closest)})")
    if not pays:
        return f"With few labels it does not pay: {name} is nowhere ahead of {names} by more than the spread."
    tail = f"; not at {', '.join(not_so)}" if not_so else ""
    return f"With few labels it pays: {name} is ahead of {names} at {', '.join(pays)}{tail}."


def confusions(scores: Scores, classes: Sequence[str], most: int = 10) -> list[tuple[str, str, int]]:
    """The pairs of classes that the pretrained features confuse most: actual, predicted, how often."""
    if scores.label is None or "method" not in scores.predicted:
        return []
    wrong = scores.predicted["method"] != scores.label
    pairs, counts = np.unique(
        np.stack([scores.label[wrong], scores.predicted["method"][wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:most]
    return [(classes[pairs[i][0]], classes[pairs[i][1]], int(counts[i])) for i in order]
