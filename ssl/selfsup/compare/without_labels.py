"""May one choose a method, or a checkpoint, without labels? Rank correlations of label-free measures with kNN accuracy.

    python -m selfsup.compare.without_labels --file compare/digits.yaml --protocols knn linear few_label label_free

It takes the options of compare/run.py, runs nothing, and prints a table of the runs that are done. The measures are the
metrics of the protocols `label_free` and `invariance`, where they were run, and the monitors of the training. A
correlation of 1 means that the measure orders methods (or the checkpoints of one run) as kNN accuracy on labelled
images does; signs are turned so that more is better. Methods that train with labels are left out.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsup.compare import git, plan, run
from selfsup.compare.by_dvc import Cache
from selfsup.compare.comparison import Comparison, Run
from selfsup.compare.leaderboard import leaderboard
from selfsup.compare.locks import Project
from selfsup.errors import UserError, one_line_errors

PROTOCOLS, TARGET = ("label_free", "invariance"), ("knn", "top1")
MONITORS = {
    "rankme": ("RankMe", 1),
    "spread": ("spread", 1),
    "uniformity": ("uniformity", -1),
    "alignment": ("alignment", -1),
}
"""Of the embeddings of training views: title, and 1 where more is held to be better."""
CHECKPOINTS = "knn_validation"  # column of the training's curve
FEWEST = 4  # rows, or checkpoints of a run, that a correlation is taken of
WITH_LABELS = {"supervised"}


@dataclass(frozen=True)
class Correlation:
    """How one measure agrees with kNN, among runs of the same data, budget and backbone."""

    chosen: str  # "method" or "checkpoint"
    where: str
    measure: str
    rows: int
    rho: float  # -1 to 1
    low: float  # of the 95 % interval
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "orders as kNN does"
        return "orders the other way round" if self.high < 0 else "not shown"


def correlations(comparison: Comparison) -> list[Correlation]:
    """All that can be taken of a comparison; empty where no measure has enough rows."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for one in comparison.runs:
        if one.method not in WITH_LABELS:
            groups[f"{one.conditions.data}; {one.conditions.budget}; backbone {one.backbone}"].append(one)
    return [
        *(found for where, runs in groups.items() for found in of_methods(where, runs)),
        *(found for where, runs in groups.items() for found in of_checkpoints(where, runs)),
    ]


def of_methods(where: str, runs: Sequence[Run]) -> Iterator[Correlation]:
    """Spearman's correlation over rows, each the mean of its seeds, with the interval of `spearman_interval`."""
    measured: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for one in runs:
        target = accuracy(one)
        for measure, value in measures(one).items():
            if target is not None:
                measured[measure][one.row].append((value, target))
    for measure, rows in measured.items():
        pairs = np.array([np.mean(pairs, axis=0) for pairs in rows.values()])  # [rows 2]
        rho = spearman(pairs)
        if rho is not None:
            yield Correlation("method", where, measure, len(pairs), rho, *spearman_interval(rho, len(pairs)))


def of_checkpoints(where: str, runs: Sequence[Run]) -> Iterator[Correlation]:
    """The mean over rows of Spearman's correlation along a run's checkpoints, with its 95 % t interval over rows."""
    from scipy.stats import t

    for monitor, (title, sign) in MONITORS.items():
        rows: dict[str, list[float]] = defaultdict(list)
        for one in runs:
            rho = spearman(np.array([(sign * value, target) for value, target in along(one, monitor)]).reshape(-1, 2))
            if rho is not None:
                rows[one.row].append(rho)
        means = np.array([np.mean(found) for found in rows.values()])
        if len(means) > 1:
            half = float(t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
            mean = float(means.mean())
            low, high = max(-1.0, mean - half), min(1.0, mean + half)
            yield Correlation("checkpoint", where, f"{title} of the embeddings", len(means), mean, low, high)


def accuracy(one: Run) -> float | None:
    """kNN accuracy on the test images, 0 to 1."""
    protocol, key = TARGET
    metrics = one.found[protocol].results["method"].metrics if protocol in one.found else {}
    return metrics[key].value if key in metrics else None


def measures(one: Run) -> dict[str, float]:
    """The label-free measures of a run by title, each turned so that more is better."""
    results = [one.found[protocol].results["method"] for protocol in PROTOCOLS if protocol in one.found]
    own = {
        f"{metric.title} of the test features": metric.value if metric.higher_is_better else -metric.value
        for result in results
        for metric in result.metrics.values()
    }
    for monitor, (title, sign) in MONITORS.items():
        values = [row[monitor] for row in one.curve if _has(row, monitor)]
        if values:
            own[f"{title} of the embeddings"] = sign * values[-1]
    return own


def along(one: Run, monitor: str) -> Iterator[tuple[float, float]]:
    """The monitor's last reading before each reading of kNN on validation images, and that reading."""
    last = None
    for row in one.curve:
        last = row[monitor] if _has(row, monitor) else last
        if _has(row, CHECKPOINTS) and last is not None:
            yield last, row[CHECKPOINTS]


def _has(row: Mapping[str, float], key: str) -> bool:
    return key in row and math.isfinite(row[key])


def spearman(pairs: np.ndarray) -> float | None:
    """Of [n 2]; None for fewer than `FEWEST`, or where one side is constant."""
    from scipy.stats import spearmanr

    if len(pairs) < FEWEST or (np.ptp(pairs, axis=0) == 0).any():
        return None
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def spearman_interval(rho: float, n: int) -> tuple[float, float]:
    """The 95 % interval: tanh(artanh(rho) -+ 1.96 sqrt((1 + rho^2 / 2) / (n - 3))), n > 3.

    Bonett & Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65. For rho of 1 or -1 it is taken at the largest rho below 1 that n rows can have.
    """
    most = 1 - 6 * 2 / (n * (n**2 - 1))  # one pair of neighbours swapped
    z, half = math.atanh(float(np.clip(rho, -most, most))), 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return min(rho, math.tanh(z - half)), max(rho, math.tanh(z + half))


def markdown(comparison: Comparison) -> str:
    """A table for each set of runs that may be compared. Raises `UserError` where there is nothing to show."""
    found = correlations(comparison)
    if not found:
        raise UserError(
            f"{comparison.name}: no label-free measure has {FEWEST} methods with kNN figures on one backbone; run more "
            f"methods, with `--protocols knn {PROTOCOLS[0]}`"
        )
    lines = [f"# May one choose without labels? {comparison.title}"]
    for where in dict.fromkeys(one.where for one in found):
        head = ["to choose a", "by", "methods", "Spearman with kNN", "95 % interval", "verdict"]
        lines += ["", f"{where}:", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for one in found:
            if one.where == where:
                cells = [
                    one.chosen,
                    one.measure,
                    str(one.rows),
                    f"{one.rho:+.2f}",
                    f"{one.low:+.2f} to {one.high:+.2f}",
                ]
                lines.append(f"| {' | '.join([*cells, one.verdict])} |")
    return "\n".join(lines)


def main() -> None:
    root = Path()
    parser = run.options(root)
    parser.description = __doc__
    args = parser.parse_args()
    command = shlex.join(["python", "-m", "selfsup.compare.without_labels", *sys.argv[1:]])
    if args.leaderboard:
        values = plan.start(root, run.described(root, args)[1], args.set_param)
        comparison = leaderboard(Project(root, git.snapshot(root)), Cache(root), values, command)
    else:
        comparison = run.collected(run.ask(root, args, command))
    print(markdown(comparison))


if __name__ == "__main__":
    with one_line_errors():
        main()
