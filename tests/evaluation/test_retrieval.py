import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from selfsup.evaluation import neighbours
from selfsup.evaluation.protocols import retrieval
from selfsup.evaluation.result import flat
from selfsup.features.store import Splits
from tests.evaluation.test_neighbours import splits

PARAMS = retrieval.Params(k=[1, 5, 10])


def test_figures_are_those_of_scikit_learn_and_of_sorting():
    features, labels = splits(1)
    gallery, classes = np.concatenate(features[:2]), np.concatenate(labels[:2])
    similarity = cosine_similarity(features.test.astype(np.float64), gallery)
    result = retrieval.run(features, labels, PARAMS, seed=0)
    pairs = zip(labels.test, similarity, strict=True)
    precision = [average_precision_score(classes == label, row) for label, row in pairs]
    np.testing.assert_allclose(result.metrics["map"].outcomes, precision, rtol=1e-6)
    for k in (1, 5, 10):
        hits = (classes[np.argsort(-similarity, axis=1)[:, :k]] == labels.test[:, None]).any(axis=1)
        assert np.array_equal(result.metrics[f"recall_{k}"].outcomes, hits)
        assert result.metrics[f"recall_{k}"].answers == k
    assert list(flat(result))[:2] == ["map", "map_se"] and result.notes == []


def test_blocks_and_lengths_change_nothing(monkeypatch):
    features, labels = splits(2)
    whole = retrieval.run(features, labels, PARAMS, 0)
    monkeypatch.setattr(neighbours, "_MATRIX", 200)
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    scaled = Splits(*(x * np.logspace(-12, 12, len(x), dtype=np.float32)[:, None] for x in features))
    parts = retrieval.run(scaled, labels, PARAMS, 0)
    for key, metric in whole.metrics.items():
        np.testing.assert_allclose(parts.metrics[key].outcomes, metric.outcomes, rtol=1e-6)


def test_the_order_of_ties_has_no_effect():
    """Eight gallery images of which five tie: the expectation over all orders of the five."""
    every = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.2, 0.1])
    relevant = np.array([False, True, True, False, False, False, True, False])
    for k in range(1, 9):
        hits = []
        for order in itertools.permutations(range(1, 6)):
            ranked = [0, *order, 6, 7][:k]
            hits.append(relevant[ranked].any())
        found = retrieval.expected_hit(np.sort(every), np.sort(every[relevant]), k)
        assert found == pytest.approx(np.mean(hits)), k
    assert neighbours.precisions(np.sort(every), every[relevant]).mean() == pytest.approx(
        average_precision_score(relevant, every)
    )


@pytest.mark.parametrize("sort", [False, True])
def test_equal_features_have_the_share_of_their_class_whatever_the_order(sort):
    rng = np.random.default_rng(3)
    labels = Splits(*(rng.choice(3, n, p=[0.6, 0.3, 0.1]) for n in (300, 60, 90)))
    labels = Splits(*map(np.sort, labels)) if sort else labels
    features = Splits(*(np.full((len(part), 70), 0.1, np.float32) for part in labels))
    result = retrieval.run(features, labels, PARAMS, 0)
    share = np.bincount(np.concatenate(labels[:2])) / 360
    np.testing.assert_allclose(result.metrics["map"].outcomes, share[labels.test])
    np.testing.assert_allclose(result.metrics["recall_1"].outcomes, share[labels.test])
    np.testing.assert_allclose(result.metrics["recall_5"].outcomes, 1 - (1 - share[labels.test]) ** 5, atol=5e-3)


def test_a_class_that_the_gallery_lacks_and_a_k_beyond_it_are_noted():
    features, labels = splits(4, sizes=(3, 3, 40))
    labels = labels._replace(train=np.array([0, 1, 0]), validation=np.array([1, 1, 0]), test=np.arange(40) % 4)
    result = retrieval.run(features, labels, PARAMS, 0)
    assert (result.metrics["map"].outcomes[labels.test > 1] == 0).all()
    assert (result.metrics["recall_10"].outcomes == (labels.test < 2)).all()
    assert result.notes == [
        "20 queries have no image of their class in the gallery and count as 0",
        "Recall@10 exceeds the gallery of 6 images",
    ]
