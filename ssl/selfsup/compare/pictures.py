"""The pictures of a comparison, as inline SVG: each row has one colour and one CSS class in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfsup.report import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from selfsup.compare.comparison import Design, Run
    from selfsup.evaluation.result import Unit

COLOURS = (
    *("#2f7fd6", "#d0701a", "#1f9560", "#9a5fd0", "#d0453b"),
    *("#14909f", "#cf4f9a", "#857f1e", "#a5694a", "#4f6bb5"),
)
"""Colours of rows. Each has a contrast of 3:1 or more to the page's background, light and dark."""

GREY = "#7d8590"  # of rows beyond the first ten
POINTS = 200  # of a curve, at most
FAR = 3.0
LONGEST = 26  # letters of a name in a picture
WIDTH = 4.8  # inches, of a chart that fills a phone's width


@dataclass(frozen=True)
class Style:
    """How a row is drawn."""

    colour: str
    group: str  # CSS class of everything that shows the row


def styles(rows: Sequence[str], ranked: Sequence[str]) -> dict[str, Style]:
    """A style per row: colours for the first of `ranked`, the best ones, grey for the rest."""
    order = [*dict.fromkeys([*ranked, *rows])]
    coloured = set(order[: len(COLOURS)])
    colours = iter(COLOURS)
    return {row: Style(next(colours) if row in coloured else GREY, f"row-{i}") for i, row in enumerate(rows)}


@dataclass(frozen=True)
class Point:
    """A row in the plane of cost and score, both means over seeds."""

    row: str
    cost: float
    score: float
    spread: float  # standard deviation of the score over seeds; 0 for one seed


def front(points: Sequence[Point], higher_is_better: bool = True) -> list[Point]:
    """The points that no other one beats in both cost and score, by ascending cost: the Pareto front."""
    sign = 1 if higher_is_better else -1
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -sign * one.score)):
        if not kept or sign * point.score > sign * kept[-1].score:
            kept.append(point)
    return kept


def short(name: str) -> str:
    """A name for a picture: of a long one its beginning and its end, where settings differ."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 10]}…{name[-9:]}"


def either(names: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def score_over_cost(
    points: Sequence[Point], look: Mapping[str, Style], cost: str, score: str, higher_is_better: bool = True
) -> str:
    """Each row's score over its cost, and the Pareto front as a broken line."""
    best = front(points, higher_is_better)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        costs = [point.cost for point in points]
        if max(costs) > 5 * min(costs) > 0:
            axis.set_xscale("log")
        axis.step(
            [point.cost for point in best],
            [point.score for point in best],
            where="post",
            color=charts.INK,
            linewidth=1,
            linestyle=(0, (4, 3)),
        )
        for point in points:
            style = look[point.row]
            if point.spread:
                axis.plot(
                    [point.cost] * 2, [point.score - point.spread, point.score + point.spread], color=style.colour
                )
            size = 8 if point in best else 6
            (dot,) = axis.plot(point.cost, point.score, "o", color=style.colour, markersize=size)
            charts.marked(dot, style.group, f"{point.row}: {point.score:.1f} after {point.cost:,.0f}")
        axis.margins(0.14)
        axis.set_xlabel(cost)
        axis.set_ylabel(score)
        _name(figure, axis, [*best, *(point for point in points if point not in best)])

    names = either([point.row for point in best])
    return charts.svg(draw, WIDTH, 3.8, f"{score} over {cost}. No row is both better and cheaper than {names}.")


def _name(figure: Figure, axis: Axes, points: Sequence[Point]) -> None:
    """Write names beside points, those first in `points` first, and leave out names that would cover another one."""
    figure.draw_without_rendering()
    taken = [axis.transData.transform((point.cost, point.score)) for point in points]
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in taken]
    inside = axis.get_window_extent()
    for point, (x, y) in zip(points, taken, strict=True):
        width, height = 5.2 * len(short(point.row)) * figure.dpi / 72, 10 * figure.dpi / 72
        # Beside and above or below: a spread runs through the point upright, the front runs through it level.
        places: tuple[tuple[tuple[float, float], dict[str, Any]], ...] = (
            ((6, 3), {"xytext": (6, 3), "ha": "left", "va": "bottom"}),
            ((-6 - width, 3), {"xytext": (-6, 3), "ha": "right", "va": "bottom"}),
            ((6, -3 - height), {"xytext": (6, -3), "ha": "left", "va": "top"}),
            ((-6 - width, -3 - height), {"xytext": (-6, -3), "ha": "right", "va": "top"}),
        )
        for (dx, dy), place in places:
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            if inside.x0 < box[0] and box[2] < inside.x1 and not any(_overlap(box, other) for other in boxes):
                axis.annotate(
                    short(point.row), (point.cost, point.score), textcoords="offset points", fontsize=8, **place
                )
                boxes.append(box)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class Interval:
    """The difference of a row from the best one, with its confidence interval, in the units of the axis."""

    row: str
    mean: float
    low: float
    high: float
    told_apart: bool  # significant after the correction for the number of pairs

    @property
    def words(self) -> str:
        """`−1.8 (−4.8 to +1.2)`."""
        mean, low, high = (
            f"{round(value, 1) + 0.0:+.1f}".replace("-", "−") for value in (self.mean, self.low, self.high)
        )
        return f"{mean} ({low} to {high})"


def forest(
    best: str, intervals: Sequence[Interval], look: Mapping[str, Style], titles: Mapping[str, str], axis_title: str
) -> str:
    """A line per row for the interval of its difference from the best; filled dots can be told apart from it.

    A difference of more than `FAR` times their median has an arrow at the edge instead.
    """

    far = FAR * float(np.median([abs(one.mean) for one in intervals]))
    near = [one for one in intervals if abs(one.mean) <= far]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(0, color=charts.INK, linewidth=1)
        ends = [0.0, *(end for one in near for end in (one.low, one.high))]
        room = 0.04 * (max(ends) - min(ends))
        axis.set_xlim(min(ends) - room, max(ends) + room)
        for y, one in enumerate(reversed(intervals)):
            style, words = look[one.row], one.words
            if one in near:
                (line,) = axis.plot([one.low, one.high], [y, y], color=style.colour, linewidth=2, solid_capstyle="butt")
                charts.marked(line, style.group, f"{titles[one.row]}: {words}")
                filled = style.colour if one.told_apart else charts.PAPER
                axis.plot(one.mean, y, "o", color=style.colour, markerfacecolor=filled, markersize=6)
            else:
                edge = axis.get_xlim()[one.mean > 0]
                axis.plot(edge, y, ">" if one.mean > 0 else "<", color=style.colour, markersize=6, clip_on=False)
            axis.annotate(words, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        axis.set_yticks(range(len(intervals)), [short(titles[one.row]) for one in reversed(intervals)])
        axis.set_ylim(-0.6, len(intervals) - 0.4)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(axis_title)

    words = "; ".join(f"{titles[one.row]} {one.words}" for one in intervals)
    return charts.svg(draw, WIDTH, 0.9 + 0.27 * len(intervals), f"Differences from {best}: {words}")


Curves = Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]
"""By row, x and y of each seed's curve; y may have NaN where nothing was read."""


def overlay(
    curves: Curves, look: Mapping[str, Style], x_title: str, y_title: str, ticks: Sequence[str] = ()
) -> str | None:
    """One thin line per seed, all rows in one chart with the names at the ends; None without a finite number.

    `ticks` are names of the places 0, 1, 2 ... on the x axis.
    """
    read = {row: [_thinned(x, y) for x, y in own] for row, own in curves.items()}
    read = {row: [(x, y) for x, y in own if len(x)] for row, own in read.items()}
    read = {row: own for row, own in read.items() if own}
    if not read:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for row in sorted(read, key=lambda row: look[row].colour != GREY):  # grey ones below
            for x, y in read[row]:
                marker = "o" if len(x) < 25 else ""
                (line,) = axis.plot(x, y, color=look[row].colour, linewidth=1, marker=marker, markersize=2)
                charts.marked(line, look[row].group, row)
        ends = {row: float(np.mean([y[-1] for _, y in own])) for row, own in read.items() if look[row].colour != GREY}
        _names_at_the_end(axis, ends, look, {row: row for row in ends})
        if ticks:
            long = sum(map(len, ticks)) > 40
            axis.set_xticks(range(len(ticks)), ticks, rotation=45 if long else 0, ha="right" if long else "center")
        axis.set_xlabel(x_title)
        axis.set_ylabel(y_title)

    return charts.svg(draw, WIDTH, 3.6, f"{y_title} over {x_title}, a line per seed: {', '.join(read)}")


def _names_at_the_end(
    axis: Axes, ends: Mapping[str, float], look: Mapping[str, Style], titles: Mapping[str, str]
) -> None:
    """Write each name to the right of the axes at its height, moved apart where they would touch."""
    low, high = axis.get_ylim()
    least = (high - low) * 0.055
    heights: list[float] = []
    order = sorted(ends, key=lambda row: ends[row])
    for row in order:
        heights.append(max(ends[row], heights[-1] + least) if heights else ends[row])
    shift = float(np.mean([ends[row] for row in order]) - np.mean(heights))
    for row, height in zip(order, heights, strict=True):
        place = ((height + shift) - low) / (high - low)
        axis.plot(1.03, place, "o", color=look[row].colour, transform=axis.transAxes, markersize=4, clip_on=False)
        axis.text(1.05, place, short(titles[row]), transform=axis.transAxes, va="center", fontsize=8)


def small(curves: Sequence[tuple[np.ndarray, np.ndarray]], style: Style, title: str, x_title: str) -> str | None:
    """A small chart of one row: one thin line per seed; None without a finite number."""
    read = [(x, y) for x, y in (_thinned(*one) for one in curves) if len(x)]
    if not read:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for x, y in read:
            axis.plot(x, y, color=style.colour, linewidth=1, marker="o" if len(x) == 1 else "")
        axis.set_xlabel(x_title)

    return charts.svg(draw, 2.1, 1.35, title)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The finite points, at most `POINTS` of them at even distances with the last one among them."""
    kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(kept) > POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, POINTS).round().astype(int)]
    return x[kept], y[kept]


def label_curves(
    series: Mapping[str, Sequence[tuple[int, float, float]]],
    look: Mapping[str, Style],
    titles: Mapping[str, str],
    y_title: str,
) -> str:
    """A line per row over the number of labels, with its band: points of (labels, mean, deviation over seeds)."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        ends = {}
        for row in sorted(series, key=lambda row: look[row].colour != GREY):
            n, mean, spread = (np.array(values) for values in zip(*sorted(series[row]), strict=True))
            colour = look[row].colour
            dashed = "-" if look[row].group.startswith("row-") else (0, (4, 3))
            (line,) = axis.plot(n, mean, color=colour, marker="o", markersize=3.5, linewidth=1.5, linestyle=dashed)
            charts.marked(line, look[row].group, titles[row])
            if colour != GREY:
                axis.fill_between(n, mean - spread, mean + spread, color=colour, alpha=0.13, lw=0)
            if colour != GREY or not look[row].group.startswith("row-"):
                ends[row] = float(mean[-1])
        if min(mean for points in series.values() for _, mean, _ in points) < 0:
            axis.axhline(0, color=charts.INK, linewidth=1)
        axis.set_xscale("log")
        every = sorted({n for points in series.values() for n, _, _ in points})
        shown = [n for i, n in enumerate(every) if i == 0 or n / every[i - 1] > 1.4]
        axis.set_xticks(shown, [f"{n:,}" for n in shown])
        axis.minorticks_off()
        _names_at_the_end(axis, ends, look, titles)
        axis.set_xlabel("labelled training images (log scale)")
        axis.set_ylabel(y_title)

    return charts.svg(
        draw, WIDTH, 3.8, f"{y_title} over the number of labels: {', '.join(titles[row] for row in series)}"
    )


def study(design: Design, runs: Sequence[Run]) -> str:
    """A panel per reading of a study: lines over the settings with one dot per run, or a heat map of pairs."""
    across = min(2, len(design.show))
    down = -(-len(design.show) // across)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis, (title, reading) in zip(axes, design.show.items(), strict=False):
            (_pairs if design.pairs else _lines)(axis, design, runs, reading)
            axis.set_title(title)
        for axis in axes[len(design.show) :]:
            axis.set_visible(False)

    title = f"{', '.join(design.show)} over {design.axis}"
    return charts.svg(draw, WIDTH * across, (3.6 if design.pairs else 2.6) * down + 0.3, title)


def reading_of(run: Run, reading: str, row: str = "method") -> float:
    """A run's figure `<source>.<name>`, percentages and points in %; NaN where it has none."""
    source, _, name = reading.partition(".")
    found = run.found.get(source)
    if found is not None:
        metric = found.results[row].metrics.get(name) if row in found.results else None
        return float("nan") if metric is None else shown(metric.value, metric.unit)
    other = {"run": {**run.pretrain, **run.times}, "embeddings": run.pretrain.get("last", {})}
    value = run.readings.get(reading, other.get(source, {}).get(name)) if row == "method" else None
    return float("nan") if value is None else float(value)


def shown(value: float, unit: Unit) -> float:
    """A figure as axes have it: percentages and points in %."""
    return 100 * value if unit in ("percent", "points") else value


def _lines(axis: Axes, design: Design, runs: Sequence[Run], reading: str) -> None:
    """The mean over seeds of each series, one dot per run, and a broken line for random weights."""
    places = {setting: i for i, setting in enumerate(dict.fromkeys(cell[1] for cell in design.cells.values()))}
    every = list(dict.fromkeys(cell[0] for cell in design.cells.values()))
    ordered = all(name.replace(".", "", 1).isdigit() for name in places)
    untrained: dict[float, str] = {}  # of random weights: one line where the series have one network
    for series, colour in zip(every, COLOURS * len(every), strict=False):
        own = [(design.cells[run.row][1], run) for run in runs if design.cells[run.row][0] == series]
        below = [value for _, run in own if np.isfinite(value := reading_of(run, reading, "random"))]
        if below:
            mean = float(np.mean(below))
            untrained[mean] = GREY if len(every) == 1 or mean in untrained else colour
        dots = [(places[setting], value) for setting, run in own if np.isfinite(value := reading_of(run, reading))]
        means = {
            x: float(np.mean([value for place, value in dots if place == x])) for x in sorted({x for x, _ in dots})
        }
        drawn = {"linestyle": "-", "marker": ""} if ordered else {"linestyle": "", "marker": "_", "markersize": 16}
        axis.plot(list(means), list(means.values()), color=colour, linewidth=1.6, label=series, **drawn)
        for place, value in dots:
            axis.plot(place, value, "o", color=colour, markersize=5)
    for height, colour in untrained.items():
        axis.axhline(height, color=colour, linestyle=(0, (4, 3)), linewidth=1)
    long = max(map(len, places)) > 8
    axis.set_xticks(list(places.values()), list(places), rotation=20 if long else 0, ha="right" if long else "center")
    axis.set_xlim(-0.4, len(places) - 0.6)
    axis.set_xlabel(design.axis)
    if len(every) > 1:
        axis.legend(frameon=False)


def _pairs(axis: Axes, design: Design, runs: Sequence[Run], reading: str) -> None:
    """The mean over seeds of each pair, and of each setting alone on the diagonal."""
    places = {setting: i for i, setting in enumerate(dict.fromkeys(cell[1] for cell in design.cells.values()))}
    grid = np.full((len(places), len(places)), np.nan)
    read: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        _, setting, other = design.cells[run.row]
        read.setdefault((setting, other), []).append(reading_of(run, reading))
    for pair, values in read.items():
        i, j = (places[setting] for setting in pair)
        grid[i, j] = grid[j, i] = np.mean(values)
    axis.imshow(grid, cmap="Blues")
    axis.grid(visible=False)
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2 if np.isfinite(grid).any() else 0.0
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", color="#ffffff" if value > middle else "#101418")
    axis.set_xticks(range(len(places)), list(places), rotation=30, ha="right")
    axis.set_yticks(range(len(places)), list(places))
