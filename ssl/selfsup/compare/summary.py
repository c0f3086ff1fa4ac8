"""The table of methods over seeds: means and standard deviations, gains over random weights, and a picture of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfsup.compare.experiment import Outcome
from selfsup.compare.study import Found, Study
from selfsup.files import replaced

SHARED = ("pixels", "majority")  # baselines that do not depend on the architecture
Runs = dict[str, list[Outcome]]  # by method, a run per seed


def write(study: Study, found: Sequence[Found], path: Path, title: str, conditions: str) -> None:
    """Write the table to `path` as Markdown, and the picture of its first column to `path` with the ending .png."""
    runs: Runs = {}
    for one in found:
        runs.setdefault(one.cell.setting, []).append(one.outcome)
    seeds = list(dict.fromkeys(one.cell.seed for one in found))
    head = (
        f"Accuracy on the test split, %, mean ± standard deviation over seeds {seeds}. Seconds and images/s: "
        "pretraining, median over seeds, with whatever else ran on the machine."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new:
        text = "\n\n".join([f"# {title}", head, table(study, runs), alarms(found), conditions])
        new.write_text(text + "\n", encoding="utf-8")
    picture(study, runs, path.with_suffix(".png"))


def gain_title(study: Study) -> str:
    return f"{next(iter(study.show))} over random weights"


def table(study: Study, runs: Runs) -> str:
    """A row per method and below them the baselines, those of an architecture from the first method that has it.

    The gain is the mean over seeds of the differences between the first column and that of random weights, in points.
    """
    timed = {title: reading for title, reading in study.show.items() if reading.startswith("run.")}
    scored = {title: reading for title, reading in study.show.items() if title not in timed}
    first = next(iter(scored.values()))
    head = ["", *scored, gain_title(study), "backbone", *timed]

    def line(name: str, row: str, own: list[Outcome]) -> str:
        trained = row == "method"
        cells = [mean(values(own, reading, row)) for reading in scored.values()]
        cells.append(gain(own, first) if trained else "")
        cells.append(own[0].backbone if row not in SHARED else "")
        cells += [median(values(own, reading)) if trained else "" for reading in timed.values()]
        return "| " + " | ".join([name, *cells]) + " |"

    lines = [line(method, "method", own) for method, own in runs.items()]
    by_backbone = {own[0].backbone: own for own in reversed(runs.values())}
    for backbone, own in by_backbone.items():
        known = own[0].rows(first)
        baselines = [row for row in ("random", *SHARED, "supervised") if row in known]
        lines += [line(f"{row}, {backbone}" if row not in SHARED else row, row, own) for row in baselines]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *dict.fromkeys(lines)])


def values(own: Sequence[Outcome], reading: str, row: str = "method") -> list[float]:
    """A figure of every run that has it."""
    return [value for one in own if (value := one.value(reading, row)) is not None]


def mean(figures: Sequence[float]) -> str:
    """Mean and standard deviation; "-" without a figure."""
    spread = f" ± {statistics.stdev(figures):.1f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.1f}{spread}" if figures else "-"


def median(figures: Sequence[float]) -> str:
    return f"{statistics.median(figures):.0f}" if figures else "-"


def gain(own: Sequence[Outcome], reading: str) -> str:
    """Points over random weights, the mean of the seeds' differences and each of them; "-" without that baseline."""
    each = [trained - random for random, trained in pairs(own, reading)]
    return f"{statistics.mean(each):+.1f} ({', '.join(f'{value:+.1f}' for value in each)})" if each else "-"


def pairs(own: Sequence[Outcome], reading: str) -> list[tuple[float, float]]:
    """The reading of random weights and of the method, of each run that has both."""
    both = [(one.value(reading, "random"), one.value(reading)) for one in own]
    return [(random, trained) for random, trained in both if random is not None and trained is not None]


def alarms(found: Sequence[Found]) -> str:
    """The runs that raised an alarm of collapse."""
    lines = [f"- {one.cell.setting}, seed {one.cell.seed}: {one.outcome.alarm}" for one in found if one.outcome.alarm]
    return "\n".join(["Alarms of collapse:", "", *lines]) if lines else "No run raised an alarm of collapse."


def picture(study: Study, runs: Runs, path: Path) -> None:
    """The first column by backbone, best method first: one dot per seed, grey for random weights, a bar between means.

    Nothing is drawn without the baseline of random weights.
    """
    from matplotlib.figure import Figure

    title, reading = next(iter(study.show.items()))
    panels: dict[str, dict[str, np.ndarray]] = {}  # by backbone and method: of random weights, and trained
    for method, outcomes in runs.items():
        if len(both := pairs(outcomes, reading)) == len(outcomes):
            panels.setdefault(outcomes[0].backbone, {})[method] = np.array(both).T  # [2 seeds]
    if not panels:
        return
    heights = [len(panel) + 1 for panel in panels.values()]
    figure = Figure(figsize=(7, 1 + 0.24 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (backbone, panel) in zip(grid, panels.items(), strict=True):
        ranked = sorted(panel.items(), key=lambda one: one[1][1].mean())
        for place, (_, (random, own)) in enumerate(ranked):
            colour = "#2f7fd6" if own.mean() > random.mean() else "#c8452f"
            axis.plot([random.mean(), own.mean()], [place, place], color=colour, alpha=0.35, linewidth=3)
            axis.scatter(random, np.full(len(random), place), color="#8b929c", s=10, label="random weights")
            axis.scatter(own, np.full(len(own), place), color=colour, s=20, label="trained (red: not better)")
        axis.set_title(f"backbones.{backbone}", loc="left", fontsize=9)
        axis.set_yticks(range(len(ranked)), [method for method, _ in ranked], fontsize=8)
        axis.set_ylim(-0.7, len(ranked) - 0.3)
        axis.tick_params(length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.grid(axis="x", linewidth=0.4)
    grid[-1].set_xlabel(f"{title} on the test split, %; the axes do not start at 0")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles[-2:], labels[-2:], frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=110)
