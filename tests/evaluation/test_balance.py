import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from selfsup.evaluation.balance import balance, commonest, majority, uneven_line
from selfsup.evaluation.compare import accuracy, paired, rank, standard_error
from selfsup.evaluation.result import Metric, Result, flat, right
from selfsup.features.store import Splits

CLASSES = ["a", "b", "c"]
LABELS = Splits(*(np.repeat(np.arange(3), counts) for counts in ([108, 6, 6], [12, 1, 1], [30, 2, 1])))


def test_class_counts_are_of_labelled_images_and_of_classes_that_are_there():
    labels = LABELS._replace(test=np.array([0, 0, 0, 1, -1, -1]))
    facts = balance(labels, CLASSES)
    assert facts["train"] == {"largest": 108, "smallest": 6, "classes": 3}
    assert facts["test"] == {"largest": 3, "smallest": 1, "classes": 2}
    assert facts["commonest"] == "a"
    assert (
        uneven_line(facts) == "classes are uneven: 6 to 108 images per class in train, 1 to 3 images per class in test"
    )


@pytest.mark.parametrize(
    ("train", "test", "uneven"), [([3, 2], [1, 1], False), ([4, 2], [1, 1], True), ([2, 2], [9, 5], True)]
)
def test_classes_are_uneven_beyond_three_to_two_in_either_split(train, test, uneven):
    labels = Splits(*(np.repeat([0, 1], counts) for counts in (train, [1, 1], test)))
    assert balance(labels, CLASSES)["uneven"] is uneven


def test_the_commonest_class_counts_validation_labels_and_the_first_of_equals_wins():
    assert commonest(Splits(np.array([1, 2, -1]), np.array([2, -1]), np.array([0, 0, 0]))).tolist() == [2, 1]
    assert commonest(Splits(np.array([1, 1]), np.array([0, 0]), np.array([2]))).tolist() == [0, 1]


def judged(labels=LABELS, seed=0, **answers):
    """A result whose metrics take so many answers, with predicted classes."""
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, len(CLASSES), len(labels.test))
    hits = predicted == labels.test
    return Result({key: right(hits, labels.test, key, n) for key, n in answers.items()}, predicted=predicted)


def test_the_majority_row_is_the_share_of_its_class_in_test():
    method = judged(first=1)
    row = majority(LABELS, method)
    assert flat(row)["first"] == pytest.approx(30 / 33)
    assert flat(row)["first_balanced"] == pytest.approx(1 / 3)
    assert row.predicted.tolist() == [0] * 33
    assert np.isfinite(paired(method.metrics["first"].outcomes, row.metrics["first"].outcomes).spread)


def test_of_several_answers_the_majority_row_takes_the_commonest_classes():
    labels = Splits(np.repeat(np.arange(7), [9, 8, 7, 6, 5, 4, 3]), np.arange(7), np.array([0, 4, 5, 6]))
    row = flat(majority(labels, judged(labels, one=1, five=5)))
    assert (row["one"], row["five"]) == (0.25, 0.5)


def test_draws_of_labels_have_one_majority_answer():
    curve = right(np.ones((3, 33), bool), LABELS.test, "1 per class")
    row = majority(LABELS, Result({"few": curve}))
    assert row.metrics["few"].outcomes.shape == (33,) and row.predicted is None


def test_what_is_not_about_classes_has_no_majority_row():
    assert majority(LABELS, Result({"seconds": Metric(3.0, "time", "seconds")})) is None
    mixed = Result({"seconds": Metric(3.0, "time", "seconds")} | judged(first=1).metrics)
    assert list(majority(LABELS, mixed).metrics) == ["first"]


def test_balanced_accuracy_is_scikit_learns():
    result = judged(seed=3, first=1)
    expected = balanced_accuracy_score(LABELS.test, result.predicted)
    assert flat(result)["first_balanced"] == pytest.approx(expected)


def test_balanced_accuracy_leaves_out_classes_without_test_images():
    metric = right(np.array([True, True, False, True]), np.array([0, 0, 0, 5]), "top-1")
    assert metric.balanced.value == pytest.approx((2 / 3 + 1) / 2)


def test_few_labels_have_a_balanced_accuracy_for_each_draw():
    hits = np.array([[True, True, False, False], [True, False, False, True]])
    metrics = flat(Result({"percent_1": right(hits, np.array([0, 0, 0, 1]), "1 %")}))
    draws = [(2 / 3 + 0) / 2, (1 / 3 + 1) / 2]
    assert metrics["percent_1_balanced"] == pytest.approx(np.mean(draws))
    assert metrics["percent_1_balanced_std"] == pytest.approx(np.std(draws, ddof=1))


def test_the_balanced_standard_error_takes_each_class_as_a_sample():
    labels = np.repeat([0, 1], [200, 10])
    hits = np.concatenate([np.arange(200) < 180, np.arange(10) < 4])
    expected = np.sqrt(0.9 * 0.1 / 199 + 0.4 * 0.6 / 9) / 2
    assert standard_error(hits, labels) == pytest.approx(expected)
    # and that is how far it is from the truth over many samples of the same images per class
    rng = np.random.default_rng(0)
    truth = np.repeat([0.9, 0.4], [200, 10])
    samples = [rng.random(210) < truth for _ in range(2000)]
    reached = [accuracy(one, labels) for one in samples]
    assert np.std(reached) == pytest.approx(np.sqrt(0.9 * 0.1 / 200 + 0.4 * 0.6 / 10) / 2, rel=0.05)
    assert np.sqrt(np.mean([standard_error(one, labels) ** 2 for one in samples])) == pytest.approx(
        np.std(reached), rel=0.05
    )


def test_outcomes_that_are_all_alike_have_the_error_of_two_more():
    # One trial more that was right and one that was wrong: deviations from the mean of 0 and 1.
    assert standard_error(np.ones(8, bool)) == pytest.approx(np.sqrt((0 + 1) / 10 / 10))
    assert standard_error(np.zeros(8, bool)) == pytest.approx(np.sqrt((0 + 1) / 10 / 10))
    by_class = standard_error(np.array([True, True, True]), np.array([0, 0, 1]))
    assert by_class == pytest.approx(np.sqrt(1 / 4**2 + 1 / 3**2) / 2)
    # Half a pair more in each cell of the table of pairs: differences of +1, -1, 0 and 0.
    for value in (0, 1):
        deviations = 0.5 * sum((value - other) ** 2 for other in (1, -1, 0, 0))
        spread = paired(np.full(8, value == 1), np.zeros(8, bool)).spread
        assert spread == pytest.approx(2.364624 * np.sqrt(deviations / 10 / 10), rel=1e-6)  # t of 7 degrees of freedom


def test_a_lead_that_only_a_class_of_one_image_gives_is_within_the_spread():
    labels = np.repeat([0, 1], [30, 1])
    a, b = np.ones(31, bool), np.arange(31) < 30
    difference = paired(a, b, labels)
    assert difference.mean == pytest.approx(0.5)
    assert not difference.exceeds


def test_balanced_ranking_prefers_who_knows_the_small_class():
    labels = np.repeat([0, 1], [90, 10])
    constant, balanced = labels == 0, np.arange(100) % 5 > 0
    assert rank({"constant": constant, "balanced": balanced}).best == "constant"
    ranking = rank({"constant": constant, "balanced": balanced}, labels)
    assert ranking.best == "balanced"
    assert ranking.difference.mean == pytest.approx(0.3)


def test_the_spread_of_few_labels_covers_draws_and_images():
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 50)) < 0.8, rng.random((4, 50)) < 0.6
    difference = a.astype(float) - b
    images, draws = difference.mean(0).var(ddof=1) / 50, difference.mean(1).var(ddof=1) / 4
    found = paired(a, b)
    assert found.mean == pytest.approx(difference.mean())
    ratio = found.spread / np.sqrt(images + draws)
    assert 2.0 < ratio < 3.19  # t of 49 and of 3 degrees of freedom
    # Draws that agree to the image say nothing of other images: once this was a spread of 0.
    same = np.tile(np.arange(20) < 18, (3, 1)), np.tile(np.arange(20) < 17, (3, 1))
    assert not paired(*same).exceeds
