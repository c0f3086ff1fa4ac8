import numpy as np
import pytest
from scipy import stats

from selfsup.evaluation.compare import paired, rank, standard_error


def test_spread_is_the_confidence_interval_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    difference = paired(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert difference.mean - difference.spread == pytest.approx(low)
    assert difference.mean + difference.spread == pytest.approx(high)


@pytest.mark.parametrize("seed", range(20))
def test_exceeds_agrees_with_the_p_value(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(60) < 0.8, rng.random(60) < 0.6
    p = stats.ttest_rel(a.astype(float), b.astype(float)).pvalue
    assert paired(a, b).exceeds == (p < 0.05)
    assert paired(a, b).p == pytest.approx(p)


def test_pairing_sees_what_unpaired_errors_hide():
    # Draws differ a lot from each other, but one row is ahead by the same amount in every one.
    b = np.array([0.2, 0.5, 0.8, 0.4, 0.6])
    a = b + 0.05 + np.array([0.001, -0.001, 0, 0.002, -0.002])
    assert standard_error(a) > 0.05
    assert paired(a, b).exceeds
    assert paired(b, a).exceeds
    assert not paired(a, b[::-1]).exceeds


def test_equal_outcomes_never_exceed():
    right = np.array([True, False, True])
    assert not paired(right, right).exceeds


def test_one_unit_never_exceeds():
    one = paired(np.array([1.0]), np.array([0.0]))
    assert not one.exceeds and one.p == 1
    assert standard_error(np.array([1.0])) == np.inf


def test_paired_needs_the_same_units():
    with pytest.raises(ValueError, match="3 and 2"):
        paired(np.ones(3), np.ones(2))


def test_booleans_are_subtracted_as_numbers():
    assert paired(np.array([False, False]), np.array([True, True])).mean == -1


def test_rank_orders_by_mean_and_needs_two_rows():
    rows = {"low": np.array([0.1, 0.2]), "high": np.array([0.9, 0.8]), "middle": np.array([0.5, 0.6])}
    ranking = rank(rows)
    assert (ranking.best, ranking.runner_up) == ("high", "middle")
    assert ranking.difference.mean == pytest.approx(0.3)
    assert rank({"alone": np.ones(3)}) is None
