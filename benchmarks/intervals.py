"""Coverage of the 95 % interval of a difference, and the family-wise error of a column's tests, by simulation.

    python benchmarks/intervals.py             # some ten minutes on one core

Right and wrong answers are drawn from a probit model: an answer is right where a row's level, the image's ease for all
rows (variance 0.5), the image's ease for this row (0.15), the seed's effect on this row and noise (0.35) sum to more
than 0. Two rows of 70 % then disagree on some 27 % of the images. The seeds' effect is as large as makes the accuracy
move by the stated standard deviation. Rows are as good as each other on average, so an interval covers the truth where
it holds 0, and every difference that is found is false; where rows are apart, it covers where it holds that difference.

Designs: crossed, all seeds have the same test images; nested, each seed has its own; drawn, each seed draws its own out
of five times as many, as where the seed splits a small set. The truth is that of new seeds and new images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter

import numpy as np
from common import arguments, conditions, table, write
from scipy import special, stats

from selfsup.compare import statistics
from selfsup.compare.statistics import Components

EASE, OWN, NOISE = 0.5, 0.15, 0.35  # variances of the latent model
RESAMPLES = 200  # of the bootstrap


@dataclass(frozen=True)
class Cell:
    """One condition. Shares of 1, but for `spread`, which is in points."""

    images: int
    accuracy: float
    spread: float  # standard deviation of a row's accuracy over seeds, in points
    design: str = (
        "crossed"  # all seeds have the same images; nested: each has its own; drawn: out of five times as many
    )
    draws: int = 1  # of labels, each with an effect as large as the seed's
    gap: float = 0.0  # by which the second row is worse
    noisy: int = 0  # rows whose spread is five times as large

    @property
    def words(self) -> list[str]:
        draws = f"{self.draws} draws, " if self.draws > 1 else ""
        gap = f", {100 * self.gap:g} points apart" if self.gap else ""
        return [f"{draws}{self.design}{gap}", f"{100 * self.accuracy:g} %", f"{self.images:,}", f"{self.spread:g}"]


def answers(rng: np.random.Generator, cell: Cell, seeds: int, rows: int = 2) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """One simulated comparison: right answers averaged over draws, float32 [rows, seeds, images], and the images.

    The images are the numbers [images] of each seed's.
    """
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    level = special.ndtri([cell.accuracy - cell.gap * row for row in range(rows)])
    slope = stats.norm.pdf(level[0])
    effect = cell.spread / 100 / slope * np.where(np.arange(rows) < cell.noisy, 5, 1)
    total = np.sqrt(EASE + OWN + NOISE + effect**2 * (2 if cell.draws > 1 else 1))
    every = cell.images * {"crossed": 1, "nested": seeds, "drawn": 5}[cell.design]
    place = np.arange(every).reshape(-1, cell.images)[np.arange(seeds) % (every // cell.images)]  # [seeds, images]
    if cell.design == "drawn":
        place = np.stack([rng.choice(every, cell.images, replace=False) for _ in range(seeds)])
    latent = (EASE**0.5 * normal(1, every) + OWN**0.5 * normal(rows, every))[:, place]  # [rows, seeds, images]
    latent = latent + (level * total)[:, None, None] + effect[:, None, None] * normal(rows, seeds, 1)
    latent = latent.astype(np.float32)
    found = np.zeros((rows, seeds, cell.images), np.float32)
    for _ in range(cell.draws):
        drawn = effect[:, None, None] * normal(rows, seeds, 1) if cell.draws > 1 else 0
        found += latent + drawn + NOISE**0.5 * normal(rows, seeds, cell.images) > 0
    return found / cell.draws, list(place)


def components(difference: np.ndarray, place: Sequence[np.ndarray]) -> Components:
    """What the package computes of a pair's differences [seeds, images]."""
    means, rest = zip(*map(statistics.residuals, difference), strict=True)
    return statistics.components(np.array(means), statistics.shared(rest, place), difference.shape[1])


def simulated(cell: Cell, seeds: int, repeats: int) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Differences [seeds, images] of two rows, less their true mean, and the images."""
    rng = np.random.default_rng([seeds, repeats, cell.images, round(1e4 * cell.accuracy), round(100 * cell.spread)])
    for _ in range(repeats):
        (first, second), place = answers(rng, cell, seeds)
        yield first - second - np.float32(cell.gap), place


def coverage(cell: Cell, seeds: int, repeats: int) -> float:
    """How often the interval holds the true difference."""
    found = [components(*one) for one in simulated(cell, seeds, repeats)]
    half, _ = statistics.judged(found)
    return float(np.mean([abs(one.mean) <= width for one, width in zip(found, half, strict=True)]))


def bootstrap(difference: np.ndarray, cell: Cell) -> bool:
    """Whether the percentile interval of a two-level bootstrap, over seeds and over images, holds 0."""
    seeds, images = difference.shape
    rng = np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)  # [R S]
    shape = (RESAMPLES, seeds) if cell.design == "nested" else RESAMPLES
    of_images = rng.multinomial(images, np.full(images, 1 / images), shape)  # [R N] or [R S N]
    sums = np.einsum("rsn,sn->rs", of_images, difference) if cell.design == "nested" else of_images @ difference.T
    low, high = np.quantile((of_seeds * sums).sum(axis=1) / seeds / images, [0.025, 0.975])
    return bool(low <= 0 <= high)


def satterthwaite(found: Components) -> float:
    total = found.between + found.images
    freedom = (found.seeds - 1) * (total / found.between) ** 2 if found.between else 1e9
    return special.stdtrit(freedom, 0.975) * total**0.5


def behrens_fisher(found: Components) -> float:
    """The 0.975 quantile of t sqrt(A) + Z sqrt(B), by 4,000 quantiles of each in a fixed random order."""
    grid = (np.arange(4000) + 0.5) / 4000
    student, normal = special.stdtrit(found.seeds - 1, grid), special.ndtri(np.random.default_rng(0).permutation(grid))
    return float(np.quantile(np.abs(student * found.between**0.5 + normal * found.images**0.5), 0.95))


OTHERS: dict[str, Callable[[Components], float]] = {
    "Satterthwaite's degrees of freedom of A + B": satterthwaite,
    "Behrens-Fisher": behrens_fisher,
    "Student's t over seeds, images ignored": lambda one: special.stdtrit(one.seeds - 1, 0.975) * one.between**0.5,
    "images alone, seeds ignored": lambda one: 1.96 * one.images**0.5,
}


def compared(cell: Cell, seeds: int, repeats: int) -> dict[str, float]:
    """Coverage of the package's rule and of others, on the same simulated comparisons."""
    held: dict[str, list[bool]] = {}
    for difference, place in simulated(cell, seeds, repeats):
        found = components(difference, place)
        widths = {"this package": float(statistics.judged([found])[0][0])}
        widths |= {name: float(rule(found)) for name, rule in OTHERS.items()}
        for name, width in widths.items():
            held.setdefault(name, []).append(abs(found.mean) <= width)
        held.setdefault("percentile bootstrap over seeds and images", []).append(bootstrap(difference, cell))
    return {name: float(np.mean(each)) for name, each in held.items()}


def family_wise(cell: Cell, seeds: int, rows: int, repeats: int) -> dict[str, float]:
    """How often at least one pair of equally good rows is told apart, and by Holm's correction of the own tests."""
    rng = np.random.default_rng([seeds, rows, cell.images, cell.noisy])
    wrong = {"adjusted": 0, "own": 0}
    for _ in range(repeats):
        right, place = answers(rng, cell, seeds, rows)
        found = [components(right[a] - right[b], place) for a, b in combinations(range(rows), 2)]
        _, p = statistics.judged(found)
        borrowed, limit = statistics.borrowing(found, rows), 0.05 / len(found)  # Holm's limit for the smallest p
        wrong["adjusted"] += borrowed.min() <= limit and bool((np.maximum(statistics.holm(borrowed), p) <= 0.05).any())
        wrong["own"] += bool(p.min() <= limit)
    return {name: count / repeats for name, count in wrong.items()}


SEEDS = (2, 3, 5, 10)
CELLS = [
    *(Cell(images, 0.7, spread) for images in (360, 10_000) for spread in (0, 1, 3)),
    *(Cell(images, 0.99, spread) for images in (360, 10_000) for spread in (0, 0.3)),
    *(Cell(images, 0.9, 1, gap=0.05) for images in (360, 10_000)),
    *(Cell(360, 0.7, spread, "nested") for spread in (0, 3)),
    Cell(360, 0.99, 0, "nested"),
    Cell(10_000, 0.7, 1, "nested"),
    *(Cell(360, 0.7, spread, "drawn") for spread in (0, 1, 3)),
    *(Cell(360, 0.6, spread, draws=5) for spread in (0, 3)),
    Cell(10_000, 0.6, 1, draws=5),
]
RULES = [Cell(360, 0.7, 0), Cell(360, 0.7, 3), Cell(4000, 0.7, 3)]
FAMILIES = [
    *((Cell(360, 0.7, 1), seeds, rows) for rows in (5, 30) for seeds in (3, 5)),
    (Cell(360, 0.7, 0), 3, 5),
    (Cell(360, 0.7, 3, "nested"), 3, 5),
    *((Cell(360, 0.7, 1, noisy=2), seeds, 5) for seeds in (3, 5)),
    (Cell(360, 0.7, 1, noisy=2), 3, 30),
    *((Cell(360, 0.7, spread, noisy=1), 3, 3) for spread in (1, 3)),
]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> None:
    parser = arguments(__doc__, "intervals.md")
    parser.add_argument("--repeats", type=int, default=2000, help="of a cell with 360 images (default: 2000)")
    args = parser.parse_args()
    start, few = perf_counter(), max(1, args.repeats // 5)
    held = []
    for cell in CELLS:
        repeats = args.repeats if cell.images == 360 else few
        held.append([*cell.words, *(percent(coverage(cell, seeds, repeats)) for seeds in SEEDS)])
        print(*held[-1], flush=True)
    rules: dict[str, list[str]] = {}
    for cell in RULES:
        for seeds in SEEDS[:3]:
            for name, share in compared(cell, seeds, few).items():
                rules.setdefault(name, []).append(percent(share))
    wrong = []
    for cell, seeds, rows in FAMILIES:
        repeats = args.repeats // 2 if rows <= 5 else args.repeats // 10
        found = family_wise(cell, seeds, rows, repeats)
        noisy = f"; {cell.noisy} row{'s' * (cell.noisy > 1)} 5 times as much" if cell.noisy else ""
        wrong.append([rows, seeds, cell.design, f"{cell.spread:g}{noisy}", repeats, *map(percent, found.values())])
        print(*wrong[-1], flush=True)
    head = ["design", "accuracy", "test images", "deviation over seeds, points"]
    columns = [
        f"{cell.images:,} images, {cell.spread:g} points, {seeds} seeds" for cell in RULES for seeds in SEEDS[:3]
    ]
    write(
        args.out,
        "Intervals and tests of a comparison, by simulation",
        str(__doc__).split("\n\n", 2)[2].strip(),
        f"## Coverage of the 95 % interval, %\n\n{args.repeats:,} simulated comparisons per cell with 360 images (one "
        f"standard error: {percent((0.05 * 0.95 / args.repeats) ** 0.5)} points), {few:,} with 10,000 "
        f"({percent((0.05 * 0.95 / few) ** 0.5)} points). By number of seeds:",
        table([*head, *SEEDS], held),
        f"## Coverage of other rules, %\n\nCrossed, accuracy 70 %, {few:,} simulated comparisons per cell.",
        table(["rule", *columns], [[name, *shares] for name, shares in rules.items()]),
        "## Family-wise error at 5 %, %\n\nHow often at least one pair of equally good rows is told apart. 360 images, "
        "accuracy 70 %. `own tests` is Holm's correction of each pair's own test, without borrowing.",
        table(["rows", "seeds", "design", "deviation, points", "comparisons", "this package", "own tests"], wrong),
        f"{(perf_counter() - start) / 60:.0f} minutes\n\n{conditions('numpy', 'scipy')}",
    )


if __name__ == "__main__":
    main()
