"""A study: what its file asks for, and the page of its runs, a plot and a table."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from selfsup.config import Strict, parse
from selfsup.errors import UserError
from selfsup.files import replaced
from selfsup.report import charts
from selfsup.report.template import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "knn": "kNN, test accuracy, %",
    "linear": "linear probe, test accuracy, %",
    "uniformity": "uniformity of the centred features",
    "tolerance": "tolerance: similarity within classes, centred",
    "spread": "spread of the embeddings",
    "rankme": "effective rank of the embeddings",
    "seconds": "seconds of pretraining",
    "loss": "loss",
}
"""The readings that a study may show. `spread` is 1 for isotropic embeddings and 0 for collapsed ones."""

PAIRS = 2_000  # features whose pairs are compared at most
COLOURS = ("#2f7fd6", "#e2812b", "#1fa37a", "#9a5fd0")

Overrides = list[str]


class Study(Strict):
    """`studies/<name>.yaml`. Overrides are those of `dvc exp run -S`."""

    title: str
    paper: str
    expect: str  # what the paper found
    axis: str  # what the settings are
    show: Annotated[list[str], Field(min_length=1)]  # readings, of TITLES
    always: Overrides
    series: dict[str, Overrides]  # one line each
    pairs: bool = False  # all pairs of settings, as a heat map
    settings: dict[str, Overrides]


@dataclass(frozen=True)
class Row:
    """A run: of which series, with which setting (or two, in a study of pairs), and what came of it."""

    series: str
    setting: str
    other: str
    seed: int
    found: Mapping[str, float] = field(default_factory=dict)

    def read(self, found: Mapping[str, float]) -> Row:
        return replace(self, found=found)

    def title(self, study: Study) -> str:
        names = self.setting if self.setting == self.other else f"{self.setting} and {self.other}"
        return f"{self.series + ', ' if self.series else ''}{study.axis} {names}, seed {self.seed}"


def load(path: Path) -> Study:
    """The study in a file. Raises `UserError`."""
    from ruamel.yaml import YAML

    study = parse(Study, YAML(typ="safe", pure=True).load(path), file=f"studies/{path.name}")
    unknown = set(study.show) - set(TITLES)
    if unknown:
        raise UserError(f"studies/{path.name}: show: unknown {sorted(unknown)}. Known: {', '.join(TITLES)}")
    if study.pairs and len(study.series) > 1:
        raise UserError(f"studies/{path.name}: series: a study of pairs has one; remove the others")
    return study


def tolerance(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Mean cosine of two images of one class, of a seeded sample of `features` [N D]; NaN without labels.

    Wang & Liu 2021, arXiv:2012.09740, section 4.2.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:PAIRS])
    z = np.asarray(features[rows], np.float64)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    own = labels[rows]
    same = np.triu((own[:, None] == own) & (own >= 0)[:, None], k=1)
    return float((z @ z.T)[same].mean()) if same.any() else float("nan")


def write_page(study: Study, rows: Sequence[Row], path: Path, command: Sequence[str]) -> Path:
    """The page, and its numbers as CSV beside it."""
    text = render(
        "study.html",
        study=study,
        titles=TITLES,
        plot=plot(study, rows),
        rows=rows,
        command=shlex.join(["python", "studies/run.py", *command]),
        alarms=[row.title(study) for row in rows if row.found.get("alarm")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new:
        new.write_text(text, encoding="utf-8")
    names = sorted({name for row in rows for name in row.found})
    with replaced(path.with_suffix(".csv")) as new, new.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["series", "setting", "other", "seed", *names])
        for row in rows:
            table.writerow([row.series, row.setting, row.other, row.seed, *(row.found.get(name, "") for name in names)])
    return path


def plot(study: Study, rows: Sequence[Row]) -> str:
    """A panel a reading, as SVG: lines over the settings with a dot a seed, or a heat map of pairs."""
    across = min(2, len(study.show))
    down = -(-len(study.show) // across)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis, name in zip(axes, study.show, strict=False):
            (heat_map if study.pairs else lines)(axis, study, rows, name)
            axis.set_title(TITLES[name])
        for axis in axes[len(study.show) :]:
            axis.set_visible(False)

    return charts.svg(draw, 4.6 * across, (3.6 if study.pairs else 2.6) * down + 0.3)


def lines(axis: Axes, study: Study, rows: Sequence[Row], name: str) -> None:
    """The mean over seeds of each series, a dot a run; below it what random weights give."""
    places = {setting: i for i, setting in enumerate(study.settings)}
    untrained: dict[float, str] = {}  # of random weights: one line where the series have one network
    for series, colour in zip(study.series, COLOURS * len(study.series), strict=False):
        below = [
            row.found[f"{name} of random"] for row in rows if row.series == series and f"{name} of random" in row.found
        ]
        if below:
            mean = float(np.mean(below))
            untrained[mean] = charts.COLOURS["random"] if len(study.series) == 1 or mean in untrained else colour
        own = [row for row in rows if row.series == series and np.isfinite(row.found.get(name, np.nan))]
        by_place = {i: [row.found[name] for row in own if row.setting == s] for s, i in places.items()}
        means = {i: float(np.mean(values)) for i, values in by_place.items() if values}
        joined = "-" if _is_number(study) else ""
        axis.plot(list(means), list(means.values()), color=colour, linestyle=joined, linewidth=1.6, label=series)
        for row in own:
            axis.plot(places[row.setting], row.found[name], "o", color=colour, markersize=5)
    for height, colour in untrained.items():
        axis.axhline(height, color=colour, linestyle=(0, (4, 3)), linewidth=1)
    long = max(map(len, places)) > 8
    axis.set_xticks(list(places.values()), list(places), rotation=20 if long else 0, ha="right" if long else "center")
    axis.set_xlim(-0.4, len(places) - 0.6)
    axis.set_xlabel(study.axis)
    if len(study.series) > 1:
        axis.legend(frameon=False)


def heat_map(axis: Axes, study: Study, rows: Sequence[Row], name: str) -> None:
    """The mean over seeds of each pair, and of each setting alone on the diagonal."""
    places = {setting: i for i, setting in enumerate(study.settings)}
    grid = np.full((len(places), len(places)), np.nan)
    for row in rows:
        i, j = places[row.setting], places[row.other]
        same = [one.found.get(name, np.nan) for one in rows if (one.setting, one.other) == (row.setting, row.other)]
        grid[i, j] = grid[j, i] = np.mean(same)
    axis.imshow(grid, cmap="Blues")
    axis.grid(visible=False)
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", color="#ffffff" if value > middle else "#101418")
    axis.set_xticks(range(len(places)), list(places), rotation=30, ha="right")
    axis.set_yticks(range(len(places)), list(places))


def _is_number(study: Study) -> bool:
    return all(name.replace(".", "", 1).isdigit() for name in study.settings)
