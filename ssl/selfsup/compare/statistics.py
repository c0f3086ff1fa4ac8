"""Inference over seeds and test images: pure functions of arrays, from paired outcomes to groups, ranks and seeds.

Two rows share seeds, splits and draws of labels, so all inference is on their paired differences. The difference of
seed s on test image i is averaged over the draws of labels, which each seed has its own of, and is taken to be

    d_si = mu + a_s + b_i + e_si        a: of the seed, b: of the image, e: of both

The estimate of mu is the mean over the S seeds of d_s, the mean over the seed's images (class-balanced: the mean of its
classes' means). Its squared standard error is A + B:

    A = var(d_1 .. d_S) / S             n = S - 1 degrees of freedom
    B = mean over s != t of c_st        c_st = sum of r_si r_ti over the images that both seeds have,
                                        r_si = (d_si - d_s) / sqrt(N (N - 1))

A holds what differs between seeds: var(a) / S, the share of e, and that of images that one seed alone has. B holds
what seeds have in common: var(b) / N where all seeds have the same test images (crossed), 0 where no two seeds share an
image (nested), and something between where the seed draws the test split from a small set. In a crossed design these
are the mean squares of readers and cases, A = MS(seeds) / SN and B = (MS(images) - MS(both)) / SN (Obuchowski &
Rockette 1995, Hillis 2007).

A difference m is tested by its p-value, the p that solves

    |m| = (A t_n(p) + B t_k(p)) / sqrt(A + B)       t_n(p): two-sided quantile of Student's t, here n = S - 1, k = N - 1

and the 95 % interval is m -+ the right side at p = 0.05. The rule is Cochran & Cox 1950, "Experimental Designs",
section 4.14, for a sum of two variance estimates. It is Student's paired t over seeds where B = 0, and over images
where A = 0.

Equal outcomes are no estimate of a deviation. Where all seeds differ by the same amount, A = 0, the share of A that the
images alone account for, (mean over s of c_ss - B) / S, is added to B. Where all images are alike as well, B is that of
`evaluation.compare` with its two pseudo-units. Where nothing is known of the images, p is 1 and the interval infinite.

Why this rule: `benchmarks/intervals.py` simulates it beside others. It covers 93 to 98 %, and up to 99.5 % with 2 seeds
where accuracy is 99 % and few images differ. Satterthwaite's degrees of freedom of A + B cover too little with 2 or 3
seeds, the Behrens-Fisher distribution of t sqrt(A) + Z sqrt(B) too much. A percentile bootstrap over seeds and images
is too wide where images make the deviation, as resampling counts e twice, and far too narrow where seeds make it: few
seeds resampled give a variance that is too small by (S - 1) / S and no heavy tails.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, count

import numpy as np
from scipy import optimize, special, stats

from selfsup.evaluation.compare import CONFIDENCE, alike, class_means

ALPHA = 1 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 1000  # that `seeds_needed` looks for
BORROWED = 2  # times a pair's own degrees of freedom: the most that `moderated` borrows from the other pairs
ROUNDING = 1e-12  # differences between seeds below this are rounding
TINIEST = 1e-100  # smaller p-values are given as this


@dataclass(frozen=True)
class Components:
    """The mean difference of two rows over the seeds of both, and the parts of its squared standard error."""

    mean: float
    seeds: int
    between: float  # A, between seeds
    images: float  # B, through images that seeds share
    units: int  # N: test images per seed, the fewest; 0 where they are not known


def residuals(outcomes: np.ndarray, labels: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """The mean of `outcomes` [N] or [draws N], and what each image adds to its error, float64 [N].

    r_i = (d_i - d) / sqrt(N (N - 1)): their squares add up to the squared standard error of the mean over images. With
    `labels` [N] the mean is class-balanced and r_i = (d_i - d_c) / (K sqrt(N_c (N_c - 1))) of an image of class c, one
    of K; a class of a single image adds nothing.
    """
    values = np.asarray(outcomes, np.float64)
    if values.ndim > 1:
        values = values.mean(axis=0)
    if labels is None:
        images = len(values)
        return float(values.mean()), (values - values.mean()) / np.sqrt(max(images * (images - 1), 1))
    means = class_means(values, labels)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    scale = len(counts) * np.sqrt(np.maximum(counts * (counts - 1), 1))
    return float(means.mean()), (values - means[inverse]) / scale[inverse]


def places(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The place of each seed's images among all images, int64 [N_s] per seed; `images` are numbers or digests [N_s]."""
    _, place = np.unique(np.concatenate(images), return_inverse=True)
    return np.split(place, np.cumsum([len(one) for one in images])[:-1])


def shared(rest: Sequence[np.ndarray], place: Sequence[np.ndarray]) -> np.ndarray:
    """c_st, float64 [S S]: products of the seeds' residuals [N_s], summed over images at the same `place` [N_s]."""
    matrix = np.zeros((len(rest), 1 + max(int(one.max(initial=0)) for one in place)))
    for row, values, columns in zip(matrix, rest, place, strict=True):
        row[columns] = values
    return matrix @ matrix.T


def components(differences: np.ndarray, c: np.ndarray | None = None, units: int = 0) -> Components:
    """Mean, A and B of the seeds' differences [S], S > 1, with c_st [S S] and N `units`; None, 0: images not known."""
    seeds, mean = len(differences), float(differences.mean())
    between = float(differences.var(ddof=1)) / seeds if np.ptp(differences) > ROUNDING else 0.0
    if c is None:
        return Components(mean, seeds, between, 0.0, 0)
    own, images = float(np.trace(c)) / seeds, float(c.sum() - np.trace(c)) / (seeds * (seeds - 1))
    images = max(0.0, images)
    if between == 0:
        images += (own - images) / seeds
    if between == 0 and images < ROUNDING**2:
        images = alike(mean, units)
    return Components(mean, seeds, between, images, units)


def half_width(
    between: np.ndarray, images: np.ndarray, freedom: np.ndarray, units: np.ndarray, p: float | np.ndarray = ALPHA
) -> np.ndarray:
    """The difference whose two-sided p-value is `p`: half of the interval's width. See the head of the file.

    A `between`, B `images`, n `freedom` and N `units`, all [n]; infinite where A and B are 0.
    """
    total = np.asarray(between + images, float)
    over_seeds, over_images = (-special.stdtrit(np.maximum(one, 1), p / 2) for one in (freedom, units - 1))
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, (between * over_seeds + images * over_images) / np.sqrt(total), np.inf)


def p_value(
    mean: np.ndarray, between: np.ndarray, images: np.ndarray, freedom: np.ndarray, units: np.ndarray
) -> np.ndarray:
    """Two-sided p of differences [n], by bisection; at least 1e-100. The other arguments are those of `half_width`."""
    low, high = np.full(mean.shape, np.log(TINIEST)), np.zeros(mean.shape)
    for _ in range(50):
        middle = (low + high) / 2
        wide = half_width(between, images, freedom, units, np.exp(middle)) > np.abs(mean)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return np.where(mean == 0, 1.0, np.exp(high))


def judged(found: Sequence[Components]) -> tuple[np.ndarray, np.ndarray]:
    """Half of the interval's width and the p-value of each pair [n], by its own test."""
    return _judged(found, np.array([one.between for one in found]), np.array([one.seeds for one in found]) - 1.0)


def borrowing(found: Sequence[Components], rows: int) -> np.ndarray:
    """The p-value of each pair [n] among `rows`, with its A `moderated` by the others."""
    seeds = np.array([one.seeds for one in found], float)
    variance, freedom = moderated(np.array([one.between for one in found]) * seeds, seeds - 1, rows)
    return _judged(found, variance / seeds, freedom)[1]


def _judged(found: Sequence[Components], between: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, images, units = (np.array([getattr(one, name) for one in found]) for name in ("mean", "images", "units"))
    rest = (between, images, freedom, units)
    return half_width(*rest), p_value(mean, *rest)


def moderated(variance: np.ndarray, freedom: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances [n] of pairs among `rows`, each drawn towards what all pairs have, and their degrees of freedom [n].

    With 2 degrees of freedom Student's t needs 14 standard errors where 10 pairs are corrected for, and 66 where 435
    are. The pairs of a column tell of each other's variance: Smyth 2004, "Linear models and empirical Bayes methods for
    assessing differential expression", section 6.2,

        s^2 = (n s_own^2 + n_0 s_0^2) / (n + n_0), with n + n_0 degrees of freedom

    s_0 and n_0 follow from mean and variance of log s_own^2. Where rows differ much in their variance, n_0 comes out
    small. Here n_0 is at most 2 n, so that a row that is much noisier than the others keeps a third of the say, and at
    most the (rows - 2) n that the other rows have. Two rows borrow nothing.
    """
    own = np.asarray(variance, float)
    most = np.minimum(BORROWED, rows - 2) * freedom
    known = own > 0
    if rows < 3 or known.sum() < 2:
        return own, np.asarray(freedom, float)
    half = np.asarray(freedom)[known] / 2
    centred = np.log(own[known]) - special.digamma(half) + np.log(half)  # [n]
    excess = float(centred.var(ddof=1) - special.polygamma(1, half).mean())
    prior = np.inf
    if excess > special.polygamma(1, 1e6):
        prior = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-8, 1e6)
    centre = centred.mean()
    if np.isfinite(prior):
        centre += special.digamma(prior / 2) - np.log(prior / 2)
    borrowed = np.minimum(prior, most)
    return (freedom * own + borrowed * np.exp(centre)) / (freedom + borrowed), freedom + borrowed


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values [n] (Holm 1979): a false difference among all n has a chance of at most 5 %.

    The k-th smallest p is multiplied by n + 1 - k, and is at least as large as those before it.
    """
    order = np.argsort(p, kind="stable")  # statsmodels' `multipletests` is not used: it collects garbage at each call
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def letters(rows: int, different: Sequence[tuple[int, int]]) -> list[str]:
    """Compact letter display: two of `rows` share a letter exactly where the pair is not among `different`.

    Insert-and-absorb, Piepho 2004, "An algorithm for a letter-based representation of all-pairwise comparisons", J.
    Comp. Graph. Stat. 13:456. It starts with one letter for all rows. For each different pair, each letter that both
    have becomes two letters, without the one and without the other; a letter whose rows are all among those of another
    is absorbed. In the end a letter is dropped if each pair that shares it shares another (sweeping). Row 0 gets an a.
    """
    groups = [frozenset(range(rows))]
    for pair in different:
        split = [group - {one} for group in groups if group.issuperset(pair) for one in pair]
        kept = [group for group in groups if not group.issuperset(pair)]
        for group in sorted(dict.fromkeys(split), key=len, reverse=True):
            if not any(group <= other for other in kept):
                kept.append(group)
        groups = kept
    groups.sort(key=sorted)
    for group in sorted(groups, key=len):
        others = [other for other in groups if other != group]
        if all(any(other.issuperset(pair) for other in others) for pair in _pairs(group)):
            groups = others
    named = list(zip(groups, _alphabet(), strict=False))
    return ["".join(letter for group, letter in named if row in group) for row in range(rows)]


def _pairs(group: frozenset[int]) -> Iterator[tuple[int, ...]]:
    """All pairs, and each row alone."""
    return chain(combinations(sorted(group), 2), ((row,) for row in group))


def _alphabet() -> Iterator[str]:
    """a to z, A to Z, and then other letters without end."""
    return chain(string.ascii_letters, (letter for code in count(0x3B1) if (letter := chr(code)).isalpha()))


def rank_intervals(rows: int, better: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Best and worst rank of each of `rows`; `better` has the pairs (row, row that it is significantly better than).

    1 + the number of rows that are better, to `rows` - the number of rows that are worse. With tests whose family-wise
    error is 5 % all intervals hold at once with 95 %: Al Mohamad, Goeman & van Zwet 2022, "Simultaneous confidence
    intervals for ranks with application to ranking institutions", Biometrics 78:238.
    """
    above, below = np.zeros(rows, int), np.zeros(rows, int)
    for winner, loser in better:
        above[loser] += 1
        below[winner] += 1
    return [(1 + int(a), rows - int(b)) for a, b in zip(above, below, strict=True)]


def seeds_needed(found: Components, alpha: float = ALPHA) -> int | None:
    """The number of seeds with which this difference would be found at level `alpha` with power 0.8.

    The true difference and the components are taken to be those observed: with S seeds the squared error is
    A S_observed / S + B. The power is that of a two-sided t-test with Satterthwaite's degrees of freedom for the sum,
    from the noncentral t distribution. More seeds do not lower B: None where B alone is too much for any number of
    seeds, and for a difference of 0. `MOST_SEEDS` + 1 stands for more than `MOST_SEEDS`.
    """
    if not found.mean or (found.images > 0 and _power(found.mean, found.images, np.inf, alpha) < POWER):
        return None
    seeds = np.arange(2, MOST_SEEDS + 1)
    between = found.between * found.seeds / seeds
    total = between + found.images
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(between > 0, total**2 / (between**2 / (seeds - 1)), np.inf)
    enough = seeds[_power(found.mean, total, freedom, alpha) >= POWER]
    return int(enough[0]) if len(enough) else MOST_SEEDS + 1


def _power(mean: float, squared: np.ndarray | float, freedom: np.ndarray | float, alpha: float) -> np.ndarray:
    """Power of the two-sided t-test of a difference `mean` with squared standard errors and degrees of freedom [n]."""
    freedom = np.minimum(freedom, 1e6)  # beyond which t is normal
    critical, shift = special.stdtrit(freedom, 1 - alpha / 2), abs(mean) / np.sqrt(squared)
    return stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
