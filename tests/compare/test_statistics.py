import importlib
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from selfsup.compare import statistics
from selfsup.compare.statistics import Components
from selfsup.evaluation.compare import paired, standard_error


@pytest.fixture
def intervals(monkeypatch):
    """The simulation that measures coverage and family-wise error."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("intervals")


def of(differences, place=None, labels=None):
    """Components of differences, one array [N] per seed; by default all seeds have the same images."""
    means, rest = zip(*(statistics.residuals(one, labels) for one in differences), strict=True)
    place = [np.arange(len(one)) for one in rest] if place is None else place
    return statistics.components(np.array(means), statistics.shared(rest, place), min(map(len, rest)))


def interval(found):
    (half,), (p,) = statistics.judged([found])
    return half, p


def test_crossed_components_are_the_mean_squares_of_a_two_way_layout():
    rng = np.random.default_rng(0)
    d = 0.4 * rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    seed, image = np.indices(d.shape)
    of_seed, of_image = (np.eye(n)[index.ravel()] for n, index in zip(d.shape, (seed, image), strict=True))
    whole, without_seed, without_image = (
        OLS(d.ravel(), design).fit().ssr for design in (np.hstack([of_seed, of_image[:, 1:]]), of_image, of_seed)
    )
    seeds, images, both = (without_seed - whole) / 3, (without_image - whole) / 29, whole / (3 * 29)
    own = of(d)
    assert own.mean == pytest.approx(d.mean())
    assert own.between == pytest.approx(seeds / d.size)
    assert own.images == pytest.approx((images - both) / d.size)


def test_nested_seeds_are_a_t_test_over_seeds():
    rng = np.random.default_rng(1)
    d = [0.3 + 0.2 * rng.normal() + rng.normal(size=n) for n in (40, 50, 45)]
    ends = np.cumsum([0, *map(len, d)])
    own = of(d, [np.arange(a, b) for a, b in pairwise(ends)])
    test = stats.ttest_1samp([one.mean() for one in d], 0)
    half, p = interval(own)
    assert own.images == 0
    assert p == pytest.approx(test.pvalue)
    assert own.mean + half == pytest.approx(test.confidence_interval(0.95).high)


def test_images_that_two_seeds_share_are_found_by_their_numbers():
    rng = np.random.default_rng(2)
    numbers = [rng.permutation(60)[:25] for _ in range(3)]
    d = [rng.normal(size=25) + 0.5 * np.sin(one) for one in numbers]
    place = statistics.places([one.astype(np.uint64) * 7 for one in numbers])
    products = []
    for (x, a), (y, b) in combinations(zip(d, numbers, strict=True), 2):
        same = [(i, j) for i in range(25) for j in range(25) if a[i] == b[j]]
        products.append(sum((x[i] - x.mean()) * (y[j] - y.mean()) / (25 * 24) for i, j in same))
    assert len({len(np.intersect1d(a, b)) for a, b in combinations(numbers, 2)}) > 1
    assert of(d, place).images == pytest.approx(max(0, np.mean(products)))


def test_the_order_of_images_has_no_effect():
    rng = np.random.default_rng(3)
    d = rng.normal(size=(3, 50)) + rng.normal(size=50)
    orders = [rng.permutation(50) for _ in range(3)]
    mixed = of([one[order] for one, order in zip(d, orders, strict=True)], statistics.places(orders))
    assert mixed.images == pytest.approx(of(d).images) and mixed.images > 0.01


def test_residuals_add_up_to_the_squared_error_of_one_run():
    rng = np.random.default_rng(4)
    outcomes, labels = rng.random(200) < 0.7, rng.integers(0, 4, 200)
    for strata in (None, labels):
        mean, rest = statistics.residuals(outcomes, strata)
        assert (rest**2).sum() == pytest.approx(standard_error(outcomes, strata) ** 2)
    by_class = [outcomes[labels == c].mean() for c in range(4)]
    assert mean == pytest.approx(np.mean(by_class)) and mean != pytest.approx(outcomes.mean())


def test_draws_are_averaged_before_anything_else():
    outcomes = np.random.default_rng(5).random((5, 80)) < 0.5
    for mine, other in zip(statistics.residuals(outcomes), statistics.residuals(outcomes.mean(0)), strict=True):
        assert mine == pytest.approx(other)


def test_the_interval_is_the_rule_of_cochran_and_cox():
    found = Components(mean=0.03, seeds=3, between=0.0002, images=0.0001, units=400)
    half, p = interval(found)

    def size(level):
        over_seeds, over_images = (stats.t.ppf(1 - level / 2, freedom) for freedom in (2, 399))
        return (0.0002 * over_seeds + 0.0001 * over_images) / 0.0003**0.5

    assert half == pytest.approx(size(0.05))
    assert size(p) == pytest.approx(0.03)


def test_seeds_that_all_differ_by_the_same_leave_the_test_of_one_run():
    d = np.random.default_rng(6).integers(-1, 2, 300).astype(float)
    half, p = interval(of([d, d, d]))
    one = paired(d, np.zeros(300))
    assert (half, p) == (pytest.approx(one.spread), pytest.approx(one.p))


def test_equal_differences_of_seeds_with_other_images_leave_the_images_deviation():
    d = np.random.default_rng(7).integers(-1, 2, 300).astype(float)
    half, _ = interval(of([d, d[::-1], d], [np.arange(300) + 300 * seed for seed in range(3)]))
    assert half == pytest.approx(paired(d, np.zeros(300)).spread / 3**0.5)  # as of 900 images, not 0


def test_equal_outcomes_are_no_certainty():
    half, p = interval(of(np.zeros((3, 100))))
    assert half == pytest.approx(paired(np.ones(100), np.ones(100)).spread) and half > 0 and p == 1
    half, p = interval(of(np.ones((3, 100))))
    assert half == pytest.approx(paired(np.ones(100), np.zeros(100)).spread) and p < 0.05


def test_without_images_and_without_deviation_nothing_is_known():
    half, p = interval(statistics.components(np.array([5.0, 5.0, 5.0])))
    assert half == np.inf and p == 1
    half, p = interval(statistics.components(np.array([1.0, 2.0, 4.0])))
    assert p == pytest.approx(stats.ttest_1samp([1, 2, 4], 0).pvalue)


def test_p_values_far_out_are_those_of_the_t_distribution():
    found = [Components(mean, 4, 1.0, 0.0, 0) for mean in (0.0, 1.0, 50.0, 1e4, 1e12)]
    expected = [2 * stats.t.sf(one.mean, 3) for one in found]
    assert statistics.judged(found)[1] == pytest.approx(expected, rel=1e-9)


# Borrowing and corrections


def test_moderation_finds_the_prior_that_variances_were_drawn_from():
    rng = np.random.default_rng(7)
    true = 0.5 * 6 / rng.chisquare(6, 20_000)  # scaled inverse chi-squared: s_0^2 = 0.5 with 6 degrees of freedom
    own = true * rng.chisquare(4, 20_000) / 4
    variance, freedom = statistics.moderated(own, np.full(20_000, 4.0), rows=9)
    assert freedom[0] - 4 == pytest.approx(6, rel=0.1)
    assert variance == pytest.approx((4 * own + 6 * 0.5) / 10, rel=0.05)


def test_moderation_borrows_at_most_twice_what_a_pair_has_and_what_others_have():
    own = 1.0 + 0.001 * np.arange(10)  # hardly any deviation: an infinite prior
    assert (statistics.moderated(own, np.full(10, 2.0), rows=5)[1] == 6).all()
    assert (statistics.moderated(own[:3], np.full(3, 2.0), rows=3)[1] == 4).all()
    variance, freedom = statistics.moderated(own[:1], np.array([2.0]), rows=2)
    assert (variance, freedom) == (own[:1], 2)


def test_moderation_leaves_pairs_without_deviation_out_of_the_prior():
    rng = np.random.default_rng(8)
    own = rng.chisquare(2, 40)
    with_zero = np.append(own, 0.0)
    whole, alone = (statistics.moderated(one, np.full(len(one), 2.0), rows=10) for one in (with_zero, own))
    assert whole[0][:-1] == pytest.approx(alone[0]) and whole[0][-1] > 0


def test_holm_is_the_step_down_rule():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert statistics.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for p in np.random.default_rng(0).random((5, 30)) ** 3:
        assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert len(statistics.holm(np.array([]))) == 0


# Letters and ranks


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 70])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_two_rows_share_a_letter_exactly_where_they_are_not_different(rows, share):
    rng = np.random.default_rng([rows, round(10 * share)])
    if rows == 70 and 0 < share < 1:  # as of tests: rows far enough apart are different
        different = [(i, j) for i, j in combinations(range(rows), 2) if j - i > 20 + 30 * share]
    else:
        different = [pair for pair in combinations(range(rows), 2) if rng.random() < share]
    marks = statistics.letters(rows, different)
    assert all(len(set(mark)) == len(mark) > 0 and mark.isalpha() for mark in marks)
    for i, j in combinations(range(rows), 2):
        assert bool(set(marks[i]) & set(marks[j])) == ((i, j) not in different)


def test_letters_of_a_known_table():
    # Piepho's situation: neighbours cannot be told apart, others can.
    assert statistics.letters(4, [(0, 2), (0, 3), (1, 3)]) == ["a", "ab", "bc", "c"]
    assert statistics.letters(3, []) == ["a", "a", "a"]
    assert statistics.letters(3, [(0, 1), (0, 2), (1, 2)]) == ["a", "b", "c"]
    assert statistics.letters(0, []) == []


def test_no_letter_is_superfluous():
    # Every triangle of six edges around a square's diagonal is implied by the outer ones.
    different = [(0, 5), (1, 4), (2, 3), (0, 4), (1, 3), (2, 5)]
    marks = statistics.letters(6, different)
    used = sorted(set("".join(marks)))
    for letter in used:
        without = [mark.replace(letter, "") for mark in marks]
        pairs = combinations(range(6), 2)
        assert not all(mark for mark in without) or any(
            (i, j) not in different and not set(without[i]) & set(without[j]) for i, j in pairs
        )


def test_rank_intervals_count_who_is_better_and_who_is_worse():
    assert statistics.rank_intervals(4, [(0, 2), (0, 3), (1, 3)]) == [(1, 2), (1, 3), (2, 4), (3, 4)]
    assert statistics.rank_intervals(3, []) == [(1, 3)] * 3
    order = [(i, j) for i, j in combinations(range(5), 2)]
    assert statistics.rank_intervals(5, order) == [(i, i) for i in range(1, 6)]


# How many seeds


@pytest.mark.parametrize(("effect", "alpha"), [(1.5, 0.05), (0.5, 0.05), (0.5, 0.001)])
def test_seeds_needed_are_those_of_a_paired_t_test_where_images_say_nothing(effect, alpha):
    needed = TTestPower().solve_power(effect_size=effect, alpha=alpha, power=0.8)
    found = Components(mean=effect, seeds=3, between=1 / 3, images=0.0, units=0)
    assert statistics.seeds_needed(found, alpha) == int(np.ceil(needed))


def test_seeds_needed_has_the_stated_power():
    found = Components(mean=-0.02, seeds=3, between=0.02**2 / 3, images=0.003**2, units=1000)
    needed = statistics.seeds_needed(found)
    assert needed is not None
    rng = np.random.default_rng(9)
    means = rng.normal(-0.02, 0.02, (40_000, needed))
    p = stats.ttest_1samp(means, 0, axis=1).pvalue  # B aside, which is small here
    assert 0.78 < (p < 0.05).mean() < 0.88


def test_no_number_of_seeds_helps_against_few_images():
    images = Components(mean=0.01, seeds=3, between=1e-6, images=0.005**2, units=360)
    assert statistics.seeds_needed(images) is None  # 2 standard errors of images, 2.8 are needed
    more = Components(mean=0.01, seeds=3, between=1e-6, images=0.0035**2, units=360)
    assert statistics.seeds_needed(more) is not None
    assert statistics.seeds_needed(Components(0.0, 3, 1e-6, 0.0, 0)) is None
    assert statistics.seeds_needed(Components(0.001, 3, 1.0, 0.0, 0)) == statistics.MOST_SEEDS + 1


# Simulation: benchmarks/intervals.py measures many more cells


def test_the_interval_covers_what_it_says(intervals):
    for cell, seeds, low, high in [
        (intervals.Cell(120, 0.7, 3), 3, 0.93, 0.97),
        (intervals.Cell(120, 0.7, 6, "nested"), 5, 0.93, 0.97),
        (intervals.Cell(120, 0.7, 0), 10, 0.93, 0.97),
        (intervals.Cell(120, 0.6, 3, draws=3), 3, 0.93, 0.975),
    ]:
        assert low <= intervals.coverage(cell, seeds, 800) <= high, cell


def test_a_percentile_bootstrap_and_forgotten_seeds_or_images_do_not(intervals):
    seeds = intervals.compared(intervals.Cell(120, 0.7, 8), 3, 150)
    assert 0.9 < seeds.pop("this package") < 0.98
    assert seeds["percentile bootstrap over seeds and images"] < 0.9
    assert seeds["images alone, seeds ignored"] < 0.6
    images = intervals.compared(intervals.Cell(120, 0.7, 0), 10, 150)
    assert images["Student's t over seeds, images ignored"] < 0.9


def test_equally_good_rows_are_rarely_told_apart(intervals):
    for cell in (intervals.Cell(120, 0.7, 3), intervals.Cell(120, 0.7, 3, noisy=1)):
        found = intervals.family_wise(cell, 3, 5, 250)
        assert found["adjusted"] <= 0.07 and found["own"] <= 0.09, cell
