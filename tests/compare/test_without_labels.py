import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from selfsup.compare import without_labels
from selfsup.errors import UserError
from selfsup.evaluation.result import Metric, Result
from tests.compare import synthetic

SKILLS = {f"m{i}": 0.2 * i for i in range(1, 9)} | {"supervised": 9.0}


def made(rank, gap=lambda skill: -skill, curve=None, skills=SKILLS):
    """A comparison whose methods have RankMe `rank(skill)` and a gap, of which less is better."""
    whole = synthetic.comparison(skills, seeds=(0, 1), whole=True)
    runs = []
    for one in whole.runs:
        skill = skills[one.row]
        metrics = {
            "rankme": Metric(rank(skill), "RankMe", "none"),
            "gap": Metric(gap(skill), "gap", "none", higher_is_better=False),
        }
        free = replace(one.found["knn"], results={"method": Result(metrics)})
        runs.append(replace(one, found=dict(one.found) | {"label_free": free}, curve=curve or one.curve))
    return replace(whole, runs=runs)


def of(comparison, chosen="method"):
    return {one.measure: one for one in without_labels.correlations(comparison) if one.chosen == chosen}


def test_a_measure_that_orders_methods_as_knn_does_has_a_correlation_near_1():
    found = of(made(lambda skill: 10 * skill))
    for measure in ("RankMe of the test features", "gap of the test features"):
        assert found[measure].rho > 0.9 and found[measure].verdict == "orders as kNN does"
        assert found[measure].rows == 8, "seeds are no rows, and supervised has seen labels"
    assert of(made(lambda skill: -skill))["RankMe of the test features"].verdict == "orders the other way round"


def test_a_measure_that_does_not_depend_on_quality_shows_nothing():
    noise = dict(zip(SKILLS.values(), [3, 7, 1, 8, 2, 6, 4, 5, 0], strict=True))
    assert of(made(noise.get))["RankMe of the test features"].verdict == "not shown"
    assert "RankMe of the test features" not in of(made(lambda skill: 5.0)), "a constant orders nothing"


def test_backbones_and_conditions_are_not_mixed():
    comparison = made(lambda skill: skill)
    two = [replace(one, backbone="vit" if one.row in ("m1", "m2", "m3") else "conv") for one in comparison.runs]
    (found,) = (one for one in without_labels.correlations(replace(comparison, runs=two)) if "RankMe" in one.measure)
    assert found.rows == 5 and "backbone conv" in found.where, "three methods are too few"


def test_checkpoints_are_ordered_within_each_run():
    """The monitor rises with kNN in each run, although runs with more of it are worse."""
    rows = [{"rankme": float(i), "alignment": float(i)} for i in range(12)]
    rows = [row | {"knn_validation": 0.5 + i / 100 if i % 2 else math.nan} for i, row in enumerate(rows)]
    found = of(made(lambda skill: skill, curve=rows), "checkpoint")
    assert found["RankMe of the embeddings"].rho == 1 and found["alignment of the embeddings"].rho == -1
    assert found["RankMe of the embeddings"].verdict == "orders as kNN does"


def test_a_checkpoint_has_the_last_reading_before_it():
    rows = [{"rankme": 1.0}, {"rankme": math.nan, "knn_validation": 0.1}, {"rankme": 2.0, "knn_validation": 0.2}]
    one = replace(made(lambda skill: skill).runs[0], curve=[{"knn_validation": 0.9}, *rows])
    assert list(without_labels.along(one, "rankme")) == [(1.0, 0.1), (2.0, 0.2)]


def test_the_interval_covers_the_true_correlation_95_times_in_100():
    rng, n, rho = np.random.default_rng(0), 25, 0.6
    true = 6 / math.pi * math.asin(rho / 2)  # Spearman's of a normal pair with Pearson's rho
    x = rng.normal(size=(2000, n))
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=(2000, n))
    a, b = (rankdata(z, axis=1) - (n + 1) / 2 for z in (x, y))
    found = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    covered = [low <= true <= high for low, high in (without_labels.spearman_interval(r, n) for r in found)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [4, 9])
def test_a_perfect_order_has_an_interval_that_a_small_number_of_rows_leaves_wide(n):
    low, high = without_labels.spearman_interval(1.0, n)
    assert high == 1 and (low > 0) == (n > 4)
    assert without_labels.spearman_interval(-1.0, n) == (-1, -low)


def test_the_table_names_conditions_and_verdicts():
    text = without_labels.markdown(made(lambda skill: skill))
    assert "digits, 1,293 training and 359 test images, 16 px; 50 epochs" in text
    assert "| method | RankMe of the test features | 8 | +" in text and "| orders as kNN does |" in text
    few = made(lambda skill: skill, skills={"a": 1.0, "b": 2.0})
    with pytest.raises(UserError, match="run more methods, with `--protocols knn label_free`"):
        without_labels.markdown(replace(few, runs=[replace(one, curve=[]) for one in few.runs]))
