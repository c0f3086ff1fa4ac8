"""What the protocols found, as tables and sentences: a winner is named only when its lead exceeds its spread.

Where classes are uneven, accuracy rewards answering the commonest class. Then the class-balanced accuracy has a table
and a sentence of its own, and whether few labels pay is judged by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.evaluation.balance import uneven_line
from selfsup.evaluation.compare import Difference, accuracy, paired, rank
from selfsup.features.store import MAJORITY, ROWS

NAMES = {"supervised": "supervised", "random": "random weights", "pixels": "raw pixels", MAJORITY: "majority class"}


@dataclass
class Scores:
    """One protocol as read from disk; without rows when it was skipped or not run."""

    protocol: str
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by row
    outcomes: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by row and metric: see Result
    predicted: dict[str, np.ndarray] = field(default_factory=dict)  # by row
    label: np.ndarray | None = None
    details: dict[str, Any] = field(default_factory=dict)
    why_not: str | None = None

    @property
    def balance(self) -> dict[str, Any]:
        """The facts of the class counts."""
        return self.details.get("balance", {})

    @property
    def uneven(self) -> bool:
        return bool(self.balance.get("uneven"))


@dataclass(frozen=True)
class Cell:
    text: str  # percent
    spread: str = ""
    best: bool = False  # and ahead of the next by more than the spread


@dataclass(frozen=True)
class Column:
    group: str
    title: str
    cells: list[Cell | None]  # one per row of the table
    labels: str = ""  # how many labels, where they are few


def read_scores(protocol: str, method: str, origin: Mapping[str, Any]) -> Scores:
    """Read `metrics/evaluate/<protocol>.json` and `evaluations/<protocol>/` in the working folder.

    Figures of another method, or not computed from `origin` (as `evaluation.run.computed_from` has it), are left out.
    """
    metrics_path, folder = Path(f"metrics/evaluate/{protocol}.json"), Path("evaluations") / protocol
    if not metrics_path.exists():
        return Scores(protocol, why_not="not run")
    written = json.loads(metrics_path.read_text(encoding="utf-8"))
    if why := stale(written, method, origin):
        return Scores(protocol, why_not=f"left out, as its figures are {why}; run dvc repro evaluate@{protocol}")
    found = written[protocol]
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


def setting_title(key: str) -> str:
    """`per_class_5` -> `5 per class`, `percent_10` -> `10 %`."""
    kind, _, value = key.rpartition("_")
    return f"{value} per class" if kind == "per_class" else f"{value} %"


def columns(scores: Sequence[Scores], balanced: bool = False) -> tuple[list[str], list[Column]]:
    """The rows of the table, and its columns: every outcome of every protocol, or its class-balanced accuracy."""
    rows = [row for row in ROWS if any(row in one.metrics for one in scores)]
    titles = {"knn": "kNN", "linear": "linear, all labels", "few_label": "linear, few labels"}
    found = []
    for one in scores:
        keys = list(dict.fromkeys(key for row in rows for key in one.outcomes.get(row, {})))
        for key in keys:
            if balanced and key == "top5":
                continue
            title = key.replace("top", "top-") if key.startswith("top") else setting_title(key)
            cells = _cells(one, key, rows, balanced)
            found.append(Column(titles.get(one.protocol, one.protocol), title, cells, _labels(one, key)))
    return rows, found


def _labels(scores: Scores, key: str) -> str:
    """How many labels a column of few labels takes: `all 12 labels`, `13 of 1,293 labels`."""
    count = scores.details.get("method", {}).get("labels", {}).get(key)
    if count is None:
        return ""
    every = scores.details["images"]["train"]
    return f"all {every:,} labels" if count == every else f"{count:,} of {every:,} labels"


def _cells(scores: Scores, key: str, rows: Sequence[str], balanced: bool) -> list[Cell | None]:
    outcomes = {row: scores.outcomes[row][key] for row in rows if key in scores.outcomes.get(row, {})}
    ranking = rank(outcomes, scores.label if balanced else None)
    name = f"{key}_balanced" if balanced else key
    cells: list[Cell | None] = []
    for row in rows:
        if row not in outcomes:
            cells.append(None)
            continue
        spread = scores.metrics[row].get(f"{name}_se", scores.metrics[row].get(f"{name}_std"))
        best = ranking is not None and ranking.best == row and ranking.difference.exceeds
        cells.append(Cell(percent(scores.metrics[row][name]), _spread(spread), best))
    return cells


def _spread(share: float | None) -> str:
    """Percent; nothing where a single image has no spread (None), or where draws that all agree tell nothing of it."""
    if share is None or share < 1e-9:
        return ""
    return percent(share) if share >= 0.0005 else "< 0.1"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: Difference) -> str:
    """`+1.2 ± 0.8 points`; without a spread where a single image gives none."""
    spread = f" ± {100 * difference.spread:.1f}" if np.isfinite(difference.spread) else ""
    return f"{100 * difference.mean:+.1f}{spread} points"


def beyond(difference: Difference) -> str:
    """Whether a difference is more than its spread, in words."""
    if not np.isfinite(difference.spread):
        return "of a single test image, which has no spread"
    return "more than the spread" if difference.exceeds else "within the spread"


def headline(scores: Sequence[Scores], name: str) -> list[str]:
    """Who won, whether pretraining beats a constant answer and raw pixels with all labels, and whether few labels pay.

    With uneven classes also what accuracy hides.
    """
    by = {one.protocol: one for one in scores if one.metrics}
    sentences = []
    full = next((by[protocol] for protocol in ("linear", "knn") if protocol in by), None)
    if full is not None:
        outcomes = {row: full.outcomes[row]["top1"] for row in full.metrics}
        where = "Linear probe with all labels" if full.protocol == "linear" else "kNN with all labels"
        sentences.append(_winner(where, outcomes, name))
        sentences.append(_against_majority(full, outcomes, name))
        if full.uneven:
            sentences.append(_balanced(full, outcomes, name))
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
    within = beyond(ranking.difference)
    return f"{where}: no winner. {best} ({share} %) and {second} ({other} %) differ by {lead}, {within}."


def _against_majority(scores: Scores, outcomes: dict[str, np.ndarray], name: str) -> str:
    """A sentence where the features tell no more than the commonest class does."""
    if MAJORITY not in outcomes:
        return ""
    difference = paired(outcomes["method"], outcomes[MAJORITY])
    if difference.ahead:
        return ""
    answer, share = scores.balance.get("commonest", ""), percent(float(outcomes[MAJORITY].mean()))
    return (
        f"{name} does not beat the majority class: answering “{answer}” for every image is right for {share} %; "
        f"{name} differs by {points(difference)}, {beyond(difference)}."
    )


def _balanced(scores: Scores, outcomes: dict[str, np.ndarray], name: str) -> str:
    """The class-balanced accuracy, and how far it is from the 1/K of any constant answer."""
    own, label = outcomes["method"], scores.label
    classes = scores.balance["test"]["classes"]
    chance = paired(own, _constant(label), label)
    reached = percent(float(accuracy(own, label)))
    said = f"{name} reaches a class-balanced accuracy of {reached} %"
    tail = f"any constant answer has {percent(1 / classes)} %: {points(chance)}, {beyond(chance)}"
    line = uneven_line(scores.balance)
    return f"{line[0].upper()}{line[1:]}. {said}; {tail}."


def _constant(label: np.ndarray | None) -> np.ndarray:
    """The outcomes of answering the commonest class of the test images; class-balanced, any other does as well."""
    assert label is not None
    return label == np.bincount(label).argmax()


def _against_pixels(difference: Difference, name: str) -> str:
    if not difference.exceeds:
        return f"With all labels {name} does not beat raw pixels: {points(difference)}, {beyond(difference)}."
    if difference.mean < 0:
        behind = points(difference).lstrip("-")
        return f"With all labels {name} does not beat raw pixels: it is {behind} behind, more than the spread."
    return f"With all labels {name} beats raw pixels: {points(difference)}, more than the spread."


def _few_labels(scores: Scores, name: str) -> str:
    rivals = [row for row in ("pixels", "random", MAJORITY) if row in scores.outcomes]
    own = scores.outcomes["method"]
    if not rivals or not own:
        return ""
    label = scores.label if scores.uneven else None
    names = ("all of " if len(rivals) > 1 else "") + " and ".join(
        ", ".join(NAMES[row] for row in rivals).rsplit(", ", 1)
    )
    pays: list[str] = []
    not_so: list[str] = []
    for key in own:
        leads = [paired(own[key], scores.outcomes[row][key], label) for row in rivals]
        closest = min(leads, key=lambda lead: lead.mean)
        said = f"{setting_title(key)} ({points(closest)})"
        (pays if all(lead.ahead for lead in leads) else not_so).append(said)
    by = " by class-balanced accuracy" if scores.uneven else ""
    if not pays:
        return f"With few labels it does not pay: {name} is nowhere ahead of {names} by more than the spread{by}."
    tail = f"; not at {', '.join(not_so)}" if not_so else ""
    return f"With few labels it pays{by}: {name} is ahead of {names} at {', '.join(pays)}{tail}."


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
