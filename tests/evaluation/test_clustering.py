import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples

from selfsup.evaluation.neighbours import lengths
from selfsup.evaluation.protocols import clustering
from selfsup.evaluation.result import flat
from selfsup.features.store import Splits
from tests.evaluation.test_neighbours import blobs, splits

PARAMS = clustering.Params(starts=3, silhouette=25)


def directions(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_centres_are_those_of_scikit_learn_from_the_same_start():
    features, _ = blobs(np.random.default_rng(0), 300, classes=5, width=4)
    start = features[None, :5] / lengths(features[:5])[None, :, None].astype(np.float32)
    centres, before = start, np.inf
    for _ in range(100):
        centres, distance = clustering.lloyd_step(features, lengths(features), centres)
        assert distance[0] <= before + 1e-6
        before = distance[0]
    other = KMeans(5, init=start[0], n_init=1, tol=0, max_iter=100).fit(directions(features))
    np.testing.assert_allclose(centres[0], other.cluster_centers_, atol=1e-5)
    assert distance[0] * 300 == pytest.approx(other.inertia_, rel=1e-5)
    assert np.array_equal(clustering.nearest(features, centres)[0], other.labels_)


def test_starts_share_passes_without_touching_each_other(monkeypatch):
    features, _ = blobs(np.random.default_rng(1), 500)
    norm, start = lengths(features), directions(features[:12]).reshape(3, 4, -1)
    together = clustering.lloyd_step(features, norm, start)
    monkeypatch.setattr(clustering, "_ROWS", 37)
    for i in range(3):
        alone = clustering.lloyd_step(features, norm, start[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-6)


def test_every_start_ends_in_a_minimum_as_good_as_the_best_of_scikit_learn():
    features, _ = blobs(np.random.default_rng(2), 800, classes=6, width=5)
    norm = lengths(features)
    centres = clustering.k_means(features, 6, 8, seed=0)
    _, distance = clustering.lloyd_step(features, norm, centres)
    best = KMeans(6, n_init=8, random_state=0).fit(directions(features)).inertia_ / 800
    assert distance.min() < best * 1.001
    assert len({round(float(one), 9) for one in distance}) > 1, "starts that are all alike are no draws"
    _, again = clustering.lloyd_step(features, norm, clustering.lloyd_step(features, norm, centres)[0])
    assert ((distance - again) / again < 1e-3).all()


def test_an_empty_cluster_keeps_its_centre():
    features = np.array([[1, 0], [2, 0], [0, 1]], np.float32)
    start = np.array([[[1, 0], [0, 1], [-1, 0]]], np.float32)
    means, _ = clustering.lloyd_step(features, lengths(features), start)
    assert means.tolist() == start.tolist()


def test_names_are_the_best_of_all_assignments():
    rng = np.random.default_rng(3)
    found, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    best = max(np.mean(np.array(order)[found] == labels) for order in itertools.permutations(range(4)))
    assert np.mean(clustering.names(found, labels, 4)[found] == labels) == pytest.approx(best)


def test_clusters_beyond_the_classes_have_no_name():
    name = clustering.names(np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 0, 0]), 4)
    assert sorted(name.tolist()) == [-1, -1, 0, 1] and name[0] == 1 and name[2] == 0


def test_silhouettes_are_those_of_scikit_learn():
    features, labels = blobs(np.random.default_rng(4), 50)
    (found,) = clustering.silhouettes(features, labels[None])
    assert found == pytest.approx(silhouette_samples(directions(features.astype(np.float64)), labels).mean(), abs=1e-6)
    assert clustering.silhouettes(features, np.zeros((1, 50), int)) == [0.0]


def test_metrics_are_means_over_starts_of_a_plain_computation():
    features, labels = splits(5, sizes=(120, 40, 80))
    result = clustering.run(features, labels, PARAMS, seed=7)
    centres = clustering.k_means(features.train, 4, 3, seed=7)
    accuracy, mapped = [], []
    for own in centres:
        test, known = (
            np.argmin(((directions(x)[:, None] - own) ** 2).sum(-1), axis=1)
            for x in (features.test, np.concatenate(features[:2]))
        )
        orders = [np.array(order) for order in itertools.permutations(range(4))]
        accuracy.append(max(np.mean(order[test] == labels.test) for order in orders))
        named = max(orders, key=lambda order: np.mean(order[known] == np.concatenate(labels[:2])))
        mapped.append(np.mean(named[test] == labels.test))
    assert result.metrics["accuracy"].outcomes.shape == (3, 80)
    figures = flat(result)
    assert figures["accuracy"] == pytest.approx(np.mean(accuracy))
    assert figures["accuracy_std"] == pytest.approx(np.std(accuracy, ddof=1))
    assert figures["named_by_train"] == pytest.approx(np.mean(mapped))
    assert figures["named_by_train"] <= figures["accuracy"]


def test_clusters_do_not_depend_on_any_label():
    features, labels = splits(6)
    shuffled = Splits(*(np.random.default_rng(0).permutation(part) for part in labels))
    once, other = (clustering.run(features, each, PARAMS, seed=1) for each in (labels, shuffled))
    assert once.metrics["silhouette"] == other.metrics["silhouette"]
    assert once.metrics["ari"].value > 0.3 > abs(other.metrics["ari"].value)


def test_the_seed_draws_the_starts():
    features, labels = splits(7)
    first, again, other = (flat(clustering.run(features, labels, PARAMS, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_only_the_first_accuracy_takes_names_from_test_labels():
    """The test images' classes change places. Clusters do not, so that names by training labels are wrong."""
    features, labels = splits(8, sizes=(200, 60, 120))
    moved = labels._replace(test=(labels.test + 1) % 4)
    plain, other = (clustering.run(features, each, PARAMS, seed=0).metrics for each in (labels, moved))
    assert other["accuracy"].value == pytest.approx(plain["accuracy"].value)
    assert plain["named_by_train"].value > 0.6 and other["named_by_train"].value < 0.3
