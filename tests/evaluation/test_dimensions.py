import numpy as np
import pytest
from sklearn.decomposition import PCA

from selfsup.evaluation.protocols import dimensions
from selfsup.features.store import Splits
from tests.evaluation.test_neighbours import blobs, slow_knn, splits

PARAMS = dimensions.Params(components=[1, 2, 4, 64], neighbours=5, temperature=0.07)


@pytest.mark.parametrize("images", [200, 12])
def test_components_are_those_of_scikit_learn(images, monkeypatch):
    monkeypatch.setattr(dimensions, "_ROWS", 17)
    train, _ = blobs(np.random.default_rng(0), images, width=20)
    mean, directions, shares = dimensions.principal(train, 6)
    other = PCA(6).fit(train.astype(np.float64))
    np.testing.assert_allclose(mean, other.mean_, atol=1e-6)
    np.testing.assert_allclose(np.abs((directions.T * other.components_).sum(axis=1)), 1, atol=1e-5)
    np.testing.assert_allclose(shares, other.explained_variance_ratio_, rtol=1e-5)
    expected = (train - other.mean_) @ directions
    np.testing.assert_allclose(dimensions.project(train, mean, directions), expected, atol=1e-4)


def test_accuracies_are_those_of_slow_neighbours_on_principal_components():
    features, labels = splits(1)
    result = dimensions.run(features, labels, PARAMS, seed=0)
    pca = PCA().fit(features.train)
    parts = [pca.transform(x) for x in features]
    bank, bank_labels = np.concatenate(parts[:2]), np.concatenate(labels[:2])
    for k, key in ((1, "k_1"), (2, "k_2"), (4, "k_4"), (6, "k_64"), (6, "k_all")):
        predicted = slow_knn(bank[:, :k], bank_labels, parts[2][:, :k], 5, 0.07)
        assert np.array_equal(result.metrics[key].outcomes, predicted == labels.test), key
    accuracies = [result.metrics[f"k_{k}"].value for k in (1, 2, 4, 64)]
    assert result.metrics["mean"].value == pytest.approx(np.mean(accuracies))
    rows = result.tables["components"].rows
    assert [row[0] for row in rows] == [1, 2, 4, 6] and [row[2] for row in rows] == pytest.approx(accuracies)


def test_needed_is_the_smallest_number_that_reaches_95_percent_of_all():
    features, labels = splits(2, sizes=(200, 60, 200))
    noise = Splits(*(np.random.default_rng(i).normal(scale=1e-3, size=(len(x), 14)) for i, x in enumerate(features)))
    wide = Splits(*(np.concatenate(both, axis=1).astype(np.float32) for both in zip(features, noise, strict=True)))
    result = dimensions.run(wide, labels, PARAMS, seed=0)
    full = result.metrics["k_all"].value
    enough = [k for k in (1, 2, 4, 64) if result.metrics[f"k_{k}"].value >= 0.95 * full]
    assert result.metrics["needed"].value == min([*enough, 20])
    assert result.metrics["needed"].value < 20


def test_features_of_low_rank_have_no_further_components():
    features, labels = splits(3)
    flat = Splits(*(np.concatenate([x[:, :2], x[:, :2] * 3, np.ones((len(x), 4))], axis=1) for x in features))
    flat = Splits(*(x.astype(np.float32) for x in flat))
    result = dimensions.run(flat, labels, PARAMS, seed=0)
    assert result.metrics["k_2"].value == result.metrics["k_4"].value == result.metrics["k_all"].value
    assert [row[:2] for row in result.tables["components"].rows][1:] == [[k, pytest.approx(1)] for k in (2, 4, 8)]
