"""Charts as inline SVG: line and text take the page's colours, so one drawing serves light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from selfsup.evaluation.result import Plot, Unit

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

COLOURS = {
    "method": "#2f7fd6",
    "supervised": "#e2812b",
    "random": "#8b929c",
    "pixels": "#1fa37a",
    "majority": "#9a5fd0",
}
"""One colour per row throughout the page, apart in brightness as well as in hue."""

INK, GRID, PAPER = "#010203", "#040506", "#070809"  # replaced by the page's own colours
_MARK = "mark:"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

IDEAL = {"spread": 1.0, "alignment": 0.0}
"""Values worth a line in a monitor's chart: an isotropic representation, perfectly aligned views."""


def curves(columns: Mapping[str, np.ndarray]) -> str | None:
    """Small multiples against the epoch (or step), as SVG: one chart for each column [R], NaN where not read."""
    x = columns.get("epoch", columns.get("step"))
    names = [name for name in columns if name not in ("step", "epoch") and np.isfinite(columns[name]).any()]
    if x is None or not len(x) or not names:
        return None
    names.sort(key=lambda name: (name != "loss", name != "knn_validation", name == "lr"))
    across = min(3, len(names))
    down = -(-len(names) // across)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
        for axis, name in zip(axes, names, strict=False):
            read = np.isfinite(columns[name])
            marker = "o" if read.sum() < 25 else ""
            colour = COLOURS["method"] if name != "loss" else COLOURS["supervised"]
            axis.plot(x[read], columns[name][read], color=colour, linewidth=1.4, marker=marker, markersize=3)
            if name in IDEAL:
                axis.axhline(IDEAL[name], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.set_title(name.replace("_", " "))
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(names) - across) : len(names)]:
            axis.set_xlabel("epoch" if "epoch" in columns else "step")
            axis.tick_params(labelbottom=True)

    return svg(
        draw, 3.5 * across, 1.75 * down + 0.25, f"Curves of {', '.join(names).replace('_', ' ')} during training"
    )


@dataclass(frozen=True)
class Panel:
    """A metric of every row, for `dots`."""

    title: str
    axis: str  # its axis' label
    unit: Unit
    rows: Mapping[str, tuple[float, float]]  # value and spread


def dots(panels: Sequence[Panel], names: Mapping[str, str]) -> str:
    """A dot and its spread for every row, as SVG. Percentages share one axis."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, squeeze=False).ravel()
        shares = [axis for axis, panel in zip(axes, panels, strict=True) if panel.unit == "percent"]
        for axis in shares[1:]:
            axis.sharex(shares[0])
        for axis, panel in zip(axes, panels, strict=True):
            for y, (row, (mean, spread)) in enumerate(reversed(list(panel.rows.items()))):
                low, value, high = (_scaled(mean + side * spread, panel.unit) for side in (-1, 0, 1))
                ends = [[value - low], [high - value]]
                axis.errorbar(value, y, xerr=ends, color=COLOURS[row], fmt="o", markersize=7, linewidth=2.4)
                axis.annotate(_digits(value), (value, y), (0, 8), textcoords="offset points", ha="center")
            axis.set_yticks(range(len(panel.rows)), [names[row] for row in reversed(list(panel.rows))])
            axis.set_ylim(-0.5, len(panel.rows) - 0.25)
            axis.margins(x=0.12)
            axis.set_title(panel.title, fontweight="bold")
            axis.spines["left"].set_visible(False)
            axis.set_xlabel(panel.axis)

    rows = max(len(panel.rows) for panel in panels)
    every = ", ".join(panel.title for panel in panels)
    return svg(draw, 4.8, (0.7 + 0.32 * rows) * len(panels) + 0.1, f"A dot per row with its spread: {every}")


def label_curve(series: Mapping[str, Sequence[tuple[int, float, float]]], names: Mapping[str, str]) -> str:
    """Accuracy against the number of labels, as SVG: per row points of (labels, mean, spread), accuracies in 0..1."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for row, points in series.items():
            n, mean, spread = (np.array(values) for values in zip(*sorted(set(points)), strict=True))
            low, high = (100 * np.clip(mean + side * spread, 0, 1) for side in (-1, 1))
            axis.fill_between(n, low, high, color=COLOURS[row], alpha=0.16, lw=0)
            axis.plot(n, 100 * mean, color=COLOURS[row], marker="o", markersize=4, linewidth=1.8, label=names[row])
        axis.set_xscale("log")
        every = sorted({n for points in series.values() for n, _, _ in points})
        shown = [n for i, n in enumerate(every) if i == 0 or n / every[i - 1] > 1.4]
        axis.set_xticks(shown, [f"{n:,}" for n in shown])
        axis.minorticks_off()
        axis.set_xlabel("labelled training images (log scale)")
        axis.set_ylabel("test accuracy, %")
        figure.legend(frameon=False, loc="outside lower center", ncols=3)  # where no line can cross it

    every = ", ".join(names[row] for row in series)
    return svg(draw, 4.8, 3.6, f"Test accuracy over the number of labelled training images: {every}")


def lines(rows: Mapping[str, Plot], names: Mapping[str, str]) -> str:
    """The plots of all rows in one chart, as SVG."""
    first = max(rows.values(), key=lambda plot: len(plot.points))

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for row, plot in rows.items():
            x, y = (np.array(values) for values in zip(*plot.points, strict=True))
            y = np.array([_scaled(value, plot.unit) for value in y.tolist()])
            axis.plot(x, y, color=COLOURS[row], marker="o", markersize=4, linewidth=1.8, label=names[row])
        places = [x for x, _ in first.points]
        if first.ticks:
            long = sum(map(len, first.ticks)) > 40
            axis.set_xticks(places, first.ticks, rotation=45 if long else 0, ha="right" if long else "center")
        elif len(places) <= 12:
            axis.set_xticks(places, [f"{x:g}" for x in places])
        axis.set_xlabel(first.x)
        axis.set_ylabel(f"{first.y}, %" if first.unit == "percent" else first.y)
        figure.legend(frameon=False, loc="outside lower center", ncols=3)  # where no line can cross it

    every = "; ".join(
        f"{names[row]} {', '.join(_digits(_scaled(y, plot.unit)) for _, y in plot.points)}"
        for row, plot in rows.items()
    )
    return svg(draw, 4.8, 3.6, f"{first.title}. {first.y} over {first.x}: {every}")


def _scaled(value: float, unit: Unit) -> float:
    """A value as its axis has it; a percentage stays in 0..100."""
    if unit == "percent":
        return 100 * min(max(value, 0.0), 1.0)
    return 100 * value if unit == "points" else value


def _digits(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def marked(artist: Artist, group: str, title: str) -> Artist:
    """The artist, which `svg` writes with the CSS class `group` and a title that shows when the pointer is on it."""
    artist.set_gid(f"{_MARK}{group} {title}")
    return artist


def svg(draw: Callable[[Figure], None], width: float, height: float, title: str) -> str:
    """The drawing of `draw(figure)` as inline SVG of `width` x `height` inches; its text is real text.

    `title` is read out in place of the picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Names within a drawing are digests of the salt and what they name: no two drawings of a page share one.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure((width, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label={quoteattr(title)}', 1)
    text = re.sub(rf""" id=(["']){_MARK}(\S+) (.*?)\1>""", r' class="\2"><title>\3</title>', text)
    text = re.sub(r' id="[A-Za-z0-9]+(?:[._][A-Za-z0-9.]+)*_\d+"', "", text)  # counters that nothing refers to
    places = r' (?:d|x|y|width|height|transform)="[^"]*"'
    text = re.sub(places, lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)").replace(PAPER, "var(--card)")


def palette(classes: int) -> np.ndarray:
    """Colours of classes, float [classes 3] in 0..1: distinct ones up to 20, then a sweep of hues."""
    import matplotlib as mpl

    if classes <= 10:
        return mpl.colormaps["tab10"](np.arange(classes))[:, :3]
    if classes <= 20:
        return mpl.colormaps["tab20"](np.arange(classes))[:, :3]
    return mpl.colormaps["hsv"](np.arange(classes) / classes)[:, :3] * 0.9
