"""The parts of a comparison's page, made ready for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfsup.compare import cells, differences, pictures
from selfsup.compare.comparison import Comparison, Conditions, Run
from selfsup.compare.judgement import Block, Column, Judgement
from selfsup.compare.pictures import Interval, Point, Style, shown
from selfsup.evaluation.result import Metric, Plot
from selfsup.features.store import MAJORITY
from selfsup.report.scores import UNITS

LEGEND = (
    "± is the standard deviation over seeds. Methods and baselines that share a letter cannot be told apart at 5 % "
    "(Holm's correction over all pairs of a column). **Bold** methods may be the best one of a column."
)
FORESTS = 4  # columns with a plot of differences, at most
BASELINE, PIXELS = pictures.GREY, "pixels"
COSTS = {  # of metrics/times/pretrain.json and metrics/pretrain.json
    "seconds": ("time", "{:,.0f} s"),
    "images_per_second": ("images/s", "{:,.0f}"),
    "peak_memory_process": ("peak memory", "bytes"),
    "peak_memory_gpu": ("peak memory of the GPU", "bytes"),
    "parameters": ("parameters", "{:,.0f}"),
}


@dataclass(frozen=True)
class Figure:
    """A picture with a heading and a sentence on how to read it."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Costs:
    """What a run costs: titles of columns, and by row a text and a number to sort by, or None."""

    titles: Sequence[str]
    rows: Mapping[str, Sequence[tuple[str, float] | None]]
    note: str


@dataclass(frozen=True)
class Part:
    """What the page shows of one block."""

    conditions: Conditions
    tables: Sequence[cells.Table]
    forests: Sequence[Figure]
    label_curves: Sequence[Figure]
    plots: Sequence[Figure]  # of protocols
    cost: Figure | None
    costs: Costs
    training: Sequence[Figure]  # all methods in one chart
    losses: Sequence[Figure]  # a chart per method
    classes: differences.Classes | None
    disagreements: differences.Disagreements | None


def of_block(block: Block, look: Mapping[str, Style], show: differences.Show) -> Part:
    """All parts of a block."""
    runs = block.runs
    headlines = [column for column in block.columns if column.headline] or list(block.columns[:1])
    predicting = next((one.protocol for one in headlines if _predicts(runs, one.protocol)), "")
    return Part(
        conditions=block.conditions,
        tables=cells.tables(block),
        forests=[one for column in headlines[:FORESTS] if (one := forest(block, column, look))],
        label_curves=label_curves(block, look),
        plots=plots(runs, look),
        cost=score_over_time(headlines, runs, look),
        costs=costs(runs),
        training=training(runs, look),
        losses=losses(runs, look),
        classes=differences.by_class(runs, predicting),
        disagreements=differences.disagreements(runs, predicting, show),
    )


def _predicts(runs: Sequence[Run], protocol: str) -> bool:
    return any(differences.answers(run, protocol) for run in runs)


def styles_of(comparison: Comparison, judgement: Judgement) -> dict[str, Style]:
    """A style per row, and a grey one per baseline. Where there are many rows, the best ones have colours."""
    ranked: list[tuple[int, int, str]] = []
    baselines: dict[str, Style] = {}
    for block in judgement.blocks:
        head = next((column for column in block.columns if column.headline), None)
        scores = head.scores if head else {}
        ranked += [(*(one.ranks or (99, 99)), row) for row, one in scores.items() if row in comparison.rows]
        for row in block.rows:
            if row.baseline:
                baselines.setdefault(row.key, Style(BASELINE, f"base-{len(baselines)}"))
    return baselines | pictures.styles(comparison.rows, [row for *_, row in sorted(ranked)])


def facts(comparison: Comparison) -> list[str]:
    """What the page is about, in a few words each."""
    asked = len(comparison.runs) + len(comparison.absent)
    runs = f"{len(comparison.runs)} of {asked} runs" if comparison.absent else f"{asked} run{'s' * (asked != 1)}"
    seeds = comparison.seeds
    kind = "setting" if comparison.design else "method"
    count = f"{len(comparison.rows)} {kind}{'s' * (len(comparison.rows) != 1)}"
    return [count, _seeds(seeds), runs] if seeds else [count, runs]


def differing(blocks: Sequence[Block]) -> list[tuple[str, list[str]]]:
    """The conditions in which blocks differ: a name, and the words of each block."""
    if len(blocks) < 2:
        return []
    every = [block.conditions for block in blocks]
    named = {
        "data": [one.data for one in every],
        "budget": [one.budget for one in every],
        "code": [one.code for one in every],
    }
    for protocol in dict.fromkeys(name for one in every for name in one.protocols):
        named[f"protocol {protocol}"] = [one.protocols.get(protocol, "not run") for one in every]
    found = [(name, words) for name, words in named.items() if len(set(words)) > 1]
    return found or [("checksum of the images", [_checksums(block.runs) for block in blocks])]


def _checksums(runs: Sequence[Run]) -> str:
    return "; ".join(f"seed {seed}: {images[:8]}" for seed, images in sorted({(run.seed, run.images) for run in runs}))


def alarms(comparison: Comparison) -> list[str]:
    """The alarms of collapse; equal ones of a row in one line."""
    raised: dict[tuple[str, str], list[int]] = {}
    for run in comparison.runs:
        if run.pretrain.get("alarm"):
            raised.setdefault((run.row, str(run.pretrain["alarm"])), []).append(run.seed)
    return [f"{row}, {_seeds(seeds)}: {text}" for (row, text), seeds in raised.items()]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def left_out(comparison: Comparison) -> list[str]:
    """Runs and protocols that could not be had, with the reason; equal reasons of a row in one line."""
    lines = [f"{one.row}, seed {one.seed}: {one.reason}" for one in comparison.absent]
    skipped: dict[tuple[str, str, str], list[int]] = {}
    for run in comparison.runs:
        for protocol, why in run.skipped.items():
            skipped.setdefault((run.row, protocol, why), []).append(run.seed)
    for (row, protocol, why), seeds in skipped.items():
        lines.append(f"{row}, {_seeds(seeds)}: no {protocol}: {why}")
    return lines


def runs_by_row(comparison: Comparison) -> dict[str, list[Run]]:
    """The runs of each row that has any, by seed."""
    found = {
        row: sorted((run for run in comparison.runs if run.row == row), key=lambda run: run.seed)
        for row in comparison.rows
    }
    return {row: runs for row, runs in found.items() if runs}


def title_of(column: Column) -> str:
    words = "" if column.unit == "none" else f", {UNITS[column.unit]}"
    return f"{column.group}: {column.title}{words}"


def forest(block: Block, column: Column, look: Mapping[str, Style]) -> Figure | None:
    """The differences of all rows from the best method; None where nothing was compared."""
    sign = 1 if column.higher_is_better else -1
    titles = {row.key: row.title for row in block.rows}
    methods = [row.key for row in block.rows if not row.baseline and row.key in column.scores]
    if not methods:
        return None
    best = max(methods, key=lambda key: sign * column.scores[key].mean)
    uneven = any(one.balanced for one in block.columns)  # elsewhere the majority row lies far below all others
    constant = {row.key for row in block.rows if row.kind == MAJORITY and not uneven}
    intervals = []
    for key in sorted(
        (key for key in column.scores if key != best and key not in constant),
        key=lambda key: -sign * column.scores[key].mean,
    ):
        pair = column.pair(key, best)
        if pair is None or not np.isfinite([pair.low, pair.high]).all():
            continue
        low, mean, high = (shown(value, column.unit) for value in (pair.low, pair.mean, pair.high))
        if pair.first == best:
            low, mean, high = -high, -mean, -low
        intervals.append(Interval(key, mean, low, high, pair.better is not None))
    if not intervals:
        return None
    unit = "points" if column.unit in ("percent", "points") else UNITS[column.unit]
    drawn = pictures.forest(
        titles[best], intervals, look, titles, f"difference from {pictures.short(titles[best])}, {unit}"
    )
    caption = (
        f"Each line is the 95 % interval of the difference from {titles[best]}, the method with the best mean. "
        "A filled dot can be told apart from it after the correction for all pairs. An arrow lies outside the chart."
    )
    return Figure(f"{column.group}: {column.title}", drawn, caption)


def label_curves(block: Block, look: Mapping[str, Style]) -> list[Figure]:
    """For each curve over the number of labels its accuracies, and what they gain over raw pixels."""
    curves: dict[str, list[Column]] = {}
    for column in block.columns:
        if column.curve is not None and not column.balanced:
            curves.setdefault(column.curve.name, []).append(column)
    titles = {row.key: row.title for row in block.rows}
    kinds = {row.key: row.kind for row in block.rows}
    drawn = []
    for name, columns in curves.items():
        if len({column.curve.labels for column in columns if column.curve}) < 2:
            continue
        series = _over_labels(columns, {key: None for key, kind in kinds.items() if kind != MAJORITY})
        chart = pictures.label_curves(series, look, titles, "test accuracy, %")
        drawn.append(Figure(f"Few labels: {name}", chart, "Bands: one standard deviation over seeds. Grey: baselines."))
        pixels = next((key for key, kind in kinds.items() if kind == PIXELS), None)
        gains = (
            _over_labels(columns, {key: pixels for key, kind in kinds.items() if kind == "method"}) if pixels else {}
        )
        if gains:
            chart = pictures.label_curves(gains, look, titles, "points over raw pixels")
            caption = "Above 0, the mean is higher than that of raw pixels. Bands: one standard deviation over seeds."
            drawn.append(Figure(f"Gain over raw pixels: {name}", chart, caption))
    return drawn


def _over_labels(
    columns: Sequence[Column], rows: Mapping[str, str | None]
) -> dict[str, list[tuple[int, float, float]]]:
    """Points of (labels, mean, standard deviation over seeds), in %, of each row less that of the row it stands for."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for column in columns:
        for key, rival in rows.items():
            own = column.scores[key].values if key in column.scores else {}
            less = (
                dict.fromkeys(own, 0.0)
                if rival is None
                else dict(column.scores[rival].values)
                if rival in column.scores
                else {}
            )
            values = [100 * (value - less[seed]) for seed, value in own.items() if seed in less]
            if values and column.curve:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                found.setdefault(key, []).append((column.curve.labels, float(np.mean(values)), spread))
    return found


def plots(runs: Sequence[Run], look: Mapping[str, Style]) -> list[Figure]:
    """The plots that protocols made of the methods, those of equal places on the x axis in one chart."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[tuple[Run, Plot]]] = {}
    for run in runs:
        for found in run.found.values():
            for name, plot in found.results["method"].plots.items():
                groups.setdefault((found.title, name, tuple(plot.ticks)), []).append((run, plot))
    drawn = []
    for (protocol, _, ticks), own in groups.items():
        read: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for run, plot in own:
            x, y = (np.array(values, np.float64) for values in zip(*plot.points, strict=True))
            read.setdefault(run.row, []).append((np.arange(len(x)) if ticks else x, shown(1.0, plot.unit) * y))
        first = own[0][1]
        y_title = f"{first.y}, {UNITS[first.unit]}" if first.unit != "none" else first.y
        if svg := pictures.overlay(read, look, first.x, y_title, ticks):
            drawn.append(Figure(f"{protocol}: {first.title}", svg, "One thin line per seed."))
    return drawn


def score_over_time(headlines: Sequence[Column], runs: Sequence[Run], look: Mapping[str, Style]) -> Figure | None:
    """The first headline over the mean seconds of pretraining; None without times of two methods."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if run.times.get("seconds") is not None:
            seconds.setdefault(run.row, []).append(float(run.times["seconds"]))
    if not headlines:
        return None
    column = headlines[0]
    points = [
        Point(row, float(np.mean(own)), shown(score.mean, column.unit), shown(score.deviation or 0.0, column.unit))
        for row, own in seconds.items()
        if (score := column.scores.get(row)) is not None
    ]
    if len(points) < 2:
        return None
    cost = "seconds of pretraining, mean over seeds"
    drawn = pictures.score_over_cost(points, look, cost, title_of(column), column.higher_is_better)
    best = [point.row for point in pictures.front(points, column.higher_is_better)]
    caption = f"Broken line: the Pareto front. Nothing here is both better and faster than {pictures.either(best)}."
    return Figure(f"{column.group} over time", drawn, caption)


def costs(runs: Sequence[Run]) -> Costs:
    """Means over seeds of what the runs cost, and the measured and unjudged figures of protocols."""
    own: dict[str, list[Run]] = {}
    for run in runs:
        own.setdefault(run.row, []).append(run)
    read = {row: {name: _mean(each, name) for name in COSTS} for row, each in own.items()}
    names = [name for name in COSTS if any(values[name] is not None for values in read.values())]
    figures: dict[str, dict[str, list[Metric]]] = {}  # by title, then by row
    for run in runs:
        for protocol, found in run.found.items():
            for metric in found.results["method"].metrics.values() if "method" in found.results else ():
                if not metric.judged or cells.measured(protocol, metric.unit):
                    figures.setdefault(f"{found.title}: {metric.title}", {}).setdefault(run.row, []).append(metric)
    rows: dict[str, list[tuple[str, float] | None]] = {}
    for row, values in read.items():
        line = [None if (value := values[name]) is None else (_words(value, COSTS[name][1]), value) for name in names]
        rows[row] = line + [_mean_of(by_row.get(row, [])) for by_row in figures.values()]
    devices = sorted({_device(run) for run in runs if "device" in run.times})
    note = f"Measured on: {'; '.join(devices)}." if devices else ""
    if len(devices) > 1:
        note += " Times of different devices cannot be compared."
    titles = [COSTS[name][0] for name in names]
    return Costs([*titles, *figures], rows, note)


def _mean_of(metrics: Sequence[Metric]) -> tuple[str, float] | None:
    """The mean as a text and a number; None of none."""
    if not metrics:
        return None
    value = float(np.mean([one.value for one in metrics]))
    return cells.number(value, metrics[0].unit), value


def _device(run: Run) -> str:
    count = run.times.get("world_size", 1)
    return f"{run.times['device']}, {count} process{'es' * (count != 1)}"


def _mean(runs: Sequence[Run], name: str) -> float | None:
    values = [run.times.get(name, run.pretrain.get(name)) for run in runs]
    known = [float(value) for value in values if isinstance(value, int | float)]
    return float(np.mean(known)) if known else None


def _words(value: float, form: str) -> str:
    return f"{value / 2**20:,.0f} MiB" if form == "bytes" else form.format(value)


def curves(runs: Sequence[Run], name: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """By row a curve per seed: epochs (or steps) and the readings, NaN where there are none."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for run in runs:
        x = np.array([_number(line.get("epoch", line.get("step"))) for line in run.curve], np.float64)
        y = np.array([_number(line.get(name)) for line in run.curve], np.float64)
        found.setdefault(run.row, []).append((x, y))
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def training(runs: Sequence[Run], look: Mapping[str, Style]) -> list[Figure]:
    """The accuracy of nearest neighbours during training, all methods in one chart."""
    read = {row: [(x, 100 * y) for x, y in own] for row, own in curves(runs, "knn_validation").items()}
    drawn = pictures.overlay(read, look, "epoch", "kNN on validation images, %")
    return (
        []
        if drawn is None
        else [Figure("kNN during training", drawn, "One thin line per seed. Validation images, not test images.")]
    )


def losses(runs: Sequence[Run], look: Mapping[str, Style]) -> list[Figure]:
    """The loss of each method, whose scales cannot be compared."""
    drawn = {
        row: pictures.small(own, look[row], f"Loss of {row} over epochs, a line per seed", "epoch")
        for row, own in curves(runs, "loss").items()
    }
    return [Figure(row, svg) for row, svg in drawn.items() if svg is not None]


def study(comparison: Comparison) -> Figure | None:
    """The plots of a study."""
    if comparison.design is None or not comparison.runs:
        return None
    drawn = pictures.study(comparison.design, comparison.runs)
    dots = "One dot per run; lines or dashes: means over seeds. Broken lines: the same networks with random weights."
    caption = "Means over seeds." if comparison.design.pairs else dots
    return Figure("Found", drawn, caption)


def shade(apart: float) -> str:
    """The background of a class's cell, CSS: the stronger the further `apart` points from the median."""
    colour = "var(--heat)" if apart > 0 else "214 120 40"
    return f"rgb({colour} / {min(abs(apart) / 25, 1.0) * 0.45:.2f})"
