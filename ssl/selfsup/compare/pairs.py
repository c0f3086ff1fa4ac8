"""All paired differences of a column: which seeds and test images a pair shares, its own test, Holm's correction.

A pair counts as different only where both hold: its own test finds a difference (the 95 % interval does not hold 0),
and so does the corrected test, in which the pair borrows degrees of freedom from the other pairs of the column
(`statistics.moderated`). `benchmarks/intervals.py` measures coverage and family-wise error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from selfsup.compare import statistics
from selfsup.compare.judgement import Pair
from selfsup.compare.lines import Line
from selfsup.compare.statistics import ALPHA, Components
from selfsup.evaluation.compare import paired
from selfsup.evaluation.folder import Found
from selfsup.evaluation.result import Metric


@dataclass(frozen=True)
class Figure:
    """What a column shows."""

    protocol: str
    metric: str
    balanced: bool  # classes weigh alike

    def of(self, line: Line, seed: int) -> Metric | None:
        return line.metric(seed, self.protocol, self.metric)

    def value(self, metric: Metric) -> float:
        return metric.balanced.value if self.balanced and metric.balanced else metric.value


@dataclass(frozen=True)
class Shared:
    """Two lines at the seeds that both have."""

    first: Line
    second: Line
    seeds: tuple[int, ...]
    values: list[float]  # differences of the figures, by seed
    outcomes: list[tuple[np.ndarray, np.ndarray]]  # by seed; empty where the figure is no mean over units
    labels: list[np.ndarray | None]  # of the test images, by seed; None where classes do not weigh alike


@dataclass(frozen=True)
class Test:
    """A pair before the correction."""

    pair: Shared
    components: Components | None  # None with one seed
    mean: float
    half: float = np.inf  # of the interval's width
    p: float = 1.0

    @property
    def of_images(self) -> bool:
        """It takes the test images into account."""
        return bool(self.components.units) if self.components else bool(np.isfinite(self.half))


def shared(a: Line, b: Line, figure: Figure) -> Shared | None:
    """Two lines at the seeds at which both have the figure; None without such a seed."""
    both = {seed: (figure.of(a, seed), figure.of(b, seed)) for seed in a.runs if seed in b.runs}
    metrics = {seed: (one, two) for seed, (one, two) in both.items() if one and two}
    if not metrics:
        return None
    outcomes = [
        (one.outcomes, two.outcomes)
        for one, two in metrics.values()
        if one.outcomes is not None and two.outcomes is not None and one.outcomes.shape[-1] == two.outcomes.shape[-1]
    ]
    founds = [a.found(seed, figure.protocol) for seed in metrics]
    return Shared(
        a,
        b,
        tuple(metrics),
        [figure.value(one) - figure.value(two) for one, two in metrics.values()],
        outcomes if len(outcomes) == len(metrics) else [],
        [found.label if found and figure.balanced else None for found in founds],
    )


def tests(lines: Sequence[Line], figure: Figure) -> list[Test]:
    """The own test of each pair that shares a seed. Where other pairs share several, one seed tells nothing."""
    pairs = [pair for a, b in combinations(lines, 2) if (pair := shared(a, b, figure))]
    several = [pair for pair in pairs if len(pair.seeds) > 1]
    if not several:
        return [_of_one_seed(pair) for pair in pairs]
    placed: dict[tuple[int, ...], list[np.ndarray]] = {}
    for pair in several:
        if pair.outcomes and pair.seeds not in placed:
            placed[pair.seeds] = places(pair, figure.protocol)
    found = [components(pair, placed.get(pair.seeds)) for pair in several]
    judged = zip(several, found, *statistics.judged(found), strict=True)
    alone = [Test(pair, None, pair.values[0]) for pair in pairs if len(pair.seeds) == 1]
    return [Test(pair, one, one.mean, float(half), float(p)) for pair, one, half, p in judged] + alone


def _of_one_seed(pair: Shared) -> Test:
    """The test over the images of one seed, and over its draws of labels."""
    if not pair.outcomes:
        return Test(pair, None, pair.values[0])
    own = paired(*pair.outcomes[0], pair.labels[0])
    return Test(pair, None, own.mean, own.spread, own.p)


def places(pair: Shared, protocol: str) -> list[np.ndarray]:
    """Where each seed's units stand among all units, int64 [N] per seed.

    Units that are not the test images, such as classes, are the same ones for all seeds. Images are known by their
    names. In results without names, equal shards or equal labels tell that all seeds have the same images.
    """
    sizes = [one.shape[-1] for one, _ in pair.outcomes]
    founds = [pair.first.runs[seed].found[protocol] for seed in pair.seeds]
    names = [one for found in founds if (one := _images(found)) is not None]
    if [len(one) for one in names] == sizes:
        return statistics.places(names)
    labels = [found.label for found in founds if found.label is not None]
    of_images = not labels or [len(one) for one in labels] == sizes
    same = len({pair.first.runs[seed].images for seed in pair.seeds}) == 1
    same |= len(labels) == len(sizes) and all(np.array_equal(one, labels[0]) for one in labels)
    if len(set(sizes)) == 1 and (same or not of_images):
        return [np.arange(size) for size in sizes]
    return [np.arange(end - size, end) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]


def _images(found: Found) -> np.ndarray | None:
    """Digests of the test images that outcomes are of, uint64 [N]; None in results without names."""
    drawn = found.results["method"].drawn
    return found.image if found.image is None or drawn is None else found.image[drawn]


def components(pair: Shared, place: list[np.ndarray] | None) -> Components:
    """The parts of the squared error of a pair over several seeds and, where `places` are known, their test images."""
    values = np.array(pair.values)
    if place is None or not pair.outcomes:
        return statistics.components(values)
    differences = [_mean(one) - _mean(two) for one, two in pair.outcomes]
    rest = [statistics.residuals(one, label)[1] for one, label in zip(differences, pair.labels, strict=True)]
    return statistics.components(values, statistics.shared(rest, place), min(map(len, rest)))


def _mean(outcomes: np.ndarray) -> np.ndarray:
    """Outcomes averaged over draws, float64 [N]."""
    return np.atleast_2d(outcomes).mean(axis=0, dtype=np.float64)


def corrected(tested: Sequence[Test], rows: int, higher_is_better: bool) -> list[Pair]:
    """The pairs with Holm's correction: of the moderated tests, and never below a pair's own p."""
    p = np.array([one.p for one in tested])
    if found := [one.components for one in tested if one.components]:
        p[[i for i, one in enumerate(tested) if one.components]] = statistics.borrowing(found, rows)
    pairs = []
    for one, adjusted in zip(tested, np.maximum(statistics.holm(p), [one.p for one in tested]), strict=True):
        first, second = one.pair.first.row.key, one.pair.second.row.key
        ahead = first if (one.mean > 0) == higher_is_better else second
        pairs.append(
            Pair(
                first,
                second,
                mean=one.mean,
                low=one.mean - one.half,
                high=one.mean + one.half,
                p=one.p,
                adjusted=float(adjusted),
                seeds=one.pair.seeds,
                better=ahead if adjusted <= ALPHA else None,
                components=one.components,
            )
        )
    return pairs


def covers(tested: Sequence[Test], protocol: str) -> str:
    """What the intervals of a column cover, as sentences."""
    if not tested:
        return "No two rows have a seed in common, so there is no difference to test."
    most = max(tested, key=lambda one: len(one.pair.seeds))
    seeds, known = most.pair.seeds, any(one.of_images for one in tested)
    if len(seeds) == 1 and not known:
        return "One seed, and a figure that is not a mean over test images: differences have no interval."
    if len(seeds) == 1:
        drawn = any(first.ndim > 1 for one in tested for first, _ in one.pair.outcomes)
        cover = "the test images and the draws of this one seed" if drawn else "the test images alone"
        return f"Intervals cover {cover}: there is one seed, {seeds[0]}. Another may change the order."
    text = f"Intervals cover {len(seeds)} seeds alone: this figure is not a mean over test images."
    if known:
        text = f"Intervals cover {len(seeds)} seeds and their test images; {_design(most.pair, protocol)}."
    if fewer := sum(one.pair.seeds != seeds for one in tested):
        text += (
            f" Rows have different seeds: {fewer} of {len(tested)} differences are over the fewer seeds that both rows "
            "have, and those over a single seed have no interval."
        )
    return text


def _design(pair: Shared, protocol: str) -> str:
    """Whether the seeds have the same test images."""
    founds = [pair.first.runs[seed].found[protocol] for seed in pair.seeds]
    images = [one for found in founds if (one := _images(found)) is not None]
    if len(images) < len(founds):
        same = len({pair.first.runs[seed].images for seed in pair.seeds}) == 1
        return "all seeds have the same images" if same else "each seed has its own images"
    both = [len(np.intersect1d(one, two)) / min(len(one), len(two)) for one, two in combinations(images, 2)]
    if min(both) == 1:
        return f"all seeds have the same {len(images[0]):,}"
    if max(both) == 0:
        return f"each seed has its own {len(images[0]):,}"
    return f"each seed draws its own, of which two seeds share {100 * float(np.mean(both)):.0f} %"
