"""The page of a study: a plot of each reading over the settings, a table of all runs, and the figures as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfsup.compare.study import Found, Study
from selfsup.files import replaced
from selfsup.report import charts
from selfsup.report.template import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f7fd6", "#e2812b", "#1fa37a", "#9a5fd0")


def write(study: Study, found: Sequence[Found], path: Path, command: str) -> None:
    """Write the page to `path`, and `path` with the ending .csv beside it."""
    text = render(
        "study.html",
        study=study,
        plot=plot(study, found),
        found=found,
        command=command,
        alarms=[one.cell.title for one in found if one.outcome.alarm],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new:
        new.write_text(text, encoding="utf-8")
    figures = [one.outcome.flat() for one in found]
    names = sorted({name for values in figures for name in values})
    with replaced(path.with_suffix(".csv")) as new, new.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["series", "setting", "other", "seed", *names])
        for one, values in zip(found, figures, strict=True):
            cell = one.cell
            own = [cell.series, cell.setting, cell.other, cell.seed]
            table.writerow([*own, *(values.get(name, "") for name in names)])


def plot(study: Study, found: Sequence[Found]) -> str:
    """A panel per reading, as SVG: lines over the settings with one dot per seed, or a heat map of pairs."""
    across = min(2, len(study.show))
    down = -(-len(study.show) // across)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis, (title, reading) in zip(axes, study.show.items(), strict=False):
            (heat_map if study.pairs else lines)(axis, study, found, reading)
            axis.set_title(title)
        for axis in axes[len(study.show) :]:
            axis.set_visible(False)

    return charts.svg(draw, 4.6 * across, (3.6 if study.pairs else 2.6) * down + 0.3)


def lines(axis: Axes, study: Study, found: Sequence[Found], reading: str) -> None:
    """The mean over seeds of each series, one dot per run, and a broken line for random weights."""
    places = {setting: i for i, setting in enumerate(study.settings)}
    untrained: dict[float, str] = {}  # of random weights: one line where the series have one network
    for series, colour in zip(study.series, COLOURS * len(study.series), strict=False):
        own = [one for one in found if one.cell.series == series]
        below = [value for one in own if (value := one.outcome.value(reading, "random")) is not None]
        if below:
            mean = float(np.mean(below))
            untrained[mean] = charts.COLOURS["random"] if len(study.series) == 1 or mean in untrained else colour
        read = [(places[one.cell.setting], _reading(one, reading)) for one in own]
        dots = [(place, value) for place, value in read if np.isfinite(value)]
        means = {
            i: float(np.mean([value for place, value in dots if place == i])) for i in sorted({i for i, _ in dots})
        }
        joined = "-" if _is_number(study) else ""
        axis.plot(list(means), list(means.values()), color=colour, linestyle=joined, linewidth=1.6, label=series)
        for place, value in dots:
            axis.plot(place, value, "o", color=colour, markersize=5)
    for height, colour in untrained.items():
        axis.axhline(height, color=colour, linestyle=(0, (4, 3)), linewidth=1)
    long = max(map(len, places)) > 8
    axis.set_xticks(list(places.values()), list(places), rotation=20 if long else 0, ha="right" if long else "center")
    axis.set_xlim(-0.4, len(places) - 0.6)
    axis.set_xlabel(study.axis)
    if len(study.series) > 1:
        axis.legend(frameon=False)


def heat_map(axis: Axes, study: Study, found: Sequence[Found], reading: str) -> None:
    """The mean over seeds of each pair, and of each setting alone on the diagonal."""
    places = {setting: i for i, setting in enumerate(study.settings)}
    grid = np.full((len(places), len(places)), np.nan)
    for pair in {(one.cell.setting, one.cell.other) for one in found}:
        values = [_reading(one, reading) for one in found if (one.cell.setting, one.cell.other) == pair]
        i, j = (places[setting] for setting in pair)
        grid[i, j] = grid[j, i] = np.mean(values)
    axis.imshow(grid, cmap="Blues")
    axis.grid(visible=False)
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", color="#ffffff" if value > middle else "#101418")
    axis.set_xticks(range(len(places)), list(places), rotation=30, ha="right")
    axis.set_yticks(range(len(places)), list(places))


def _reading(one: Found, reading: str) -> float:
    value = one.outcome.value(reading)
    return np.nan if value is None else value


def _is_number(study: Study) -> bool:
    return all(name.replace(".", "", 1).isdigit() for name in study.settings)
