import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from selfsup.evaluation.neighbours import unit_rows
from selfsup.evaluation.protocols import svm
from selfsup.evaluation.result import flat
from selfsup.features.store import Splits
from tests.evaluation.test_neighbours import splits

PARAMS = svm.Params(c=[0.1, 1.0, 10.0], folds=3)


def test_map_and_choices_are_those_of_scikit_learn():
    features, labels = splits(0, sizes=(90, 40, 70))
    result = svm.run(features, labels, PARAMS, seed=0)
    x, y = unit_rows(np.concatenate(features[:2])), np.concatenate(labels[:2])
    scores, means = [], []
    for c in range(4):

        def machine(cost):
            return LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=False)

        readings = {
            cost: cross_val_score(machine(cost), x, y == c, cv=StratifiedKFold(3), scoring="average_precision").mean()
            for cost in PARAMS.c
        }
        best = max(readings, key=lambda cost: (round(readings[cost], 9), -cost))
        scores.append(machine(best).fit(x, y == c).decision_function(unit_rows(features.test)))
        means.append(average_precision_score(labels.test == c, scores[-1]))
        row = result.tables["classes"].rows[c]
        assert row[:2] == [c, best] and row[2:4] == pytest.approx([readings[best], means[-1]], abs=1e-6)
    assert flat(result)["map"] == pytest.approx(np.mean(means))
    assert np.array_equal(result.predicted, np.argmax(scores, axis=0))


def test_the_fit_minimises_the_stated_objective():
    rng = np.random.default_rng(1)
    x = unit_rows(rng.normal(size=(60, 4)))
    target = x[:, 0] + 0.5 * rng.normal(size=60) > 0.2

    def objective(theta):
        margin = np.maximum(0, 1 - np.where(target, 1, -1) * (x @ theta[:4] + theta[4]))
        return (theta**2).sum() / 2 + 3.0 * (np.where(target, 2, 1) * margin**2).sum()

    one = svm.fit(x, target, svm.Params(c=[3.0], folds=3), seed=0)
    assert one.converged
    assert objective(np.array([*one.weight, one.bias])) == pytest.approx(minimize(objective, np.zeros(5)).fun, rel=1e-3)


def test_eleven_points_by_hand():
    """Relevant at places 1, 3 and 6: the precision from each recall on is 1, 2/3 and 1/2."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    relevant = np.array([True, False, True, False, False, True])
    assert svm.eleven_point(scores, relevant) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11)
    assert svm.eleven_point(np.zeros(6), relevant) == pytest.approx(0.5)


def test_an_image_may_have_several_classes():
    """`fit` takes each column of labels [N K] on its own."""
    rng = np.random.default_rng(2)
    x = unit_rows(rng.normal(size=(300, 5)))
    targets = x[:, :3] > 0.1  # [N K]
    assert (targets.sum(axis=1) > 1).any()
    for target in targets.T:
        one = svm.fit(x[:200], target[:200], PARAMS, seed=0)
        assert average_precision_score(target[200:], one.scores(x[200:])) > 0.98


def test_classes_with_one_training_image_or_none():
    features, labels = splits(3)
    train, validation = np.arange(60) % 2, np.arange(30) % 2
    train[0], test = 2, np.arange(40) % 4  # class 3 is in the test split only
    result = svm.run(features, labels._replace(train=train, validation=validation, test=test), PARAMS, 0)
    rows = result.tables["classes"].rows
    assert rows[2][1:3] == [0.1, 0.0], "nothing to cross-validate: the smallest C"
    assert rows[3][2] == 0 and rows[3][3] == pytest.approx(0.25), "no score, so chance"
    assert flat(result)["map"] == pytest.approx(np.mean([row[3] for row in rows]))


def test_a_class_that_was_never_seen_is_no_answer():
    """Its scores are 0, above those of the classes that were seen: each has a tenth of the images, and no mark."""
    rng, sizes = np.random.default_rng(5), (100, 50, 40)
    features = Splits(*(rng.normal(size=(size, 4)) for size in sizes))
    labels = Splits(*(np.arange(size) % classes for size, classes in zip(sizes, (10, 10, 11), strict=True)))
    result = svm.run(features, labels, PARAMS, 0)
    assert 10 not in result.predicted and result.tables["classes"].rows[10][3] == pytest.approx(3 / 40)


def test_the_length_of_features_has_no_effect():
    features, labels = splits(4)
    scaled = features._replace(test=features.test * np.linspace(1, 1e4, 40, dtype=np.float32)[:, None])
    assert flat(svm.run(features, labels, PARAMS, 0)) == pytest.approx(flat(svm.run(scaled, labels, PARAMS, 0)))
