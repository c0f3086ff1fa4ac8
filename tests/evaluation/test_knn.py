import math

import numpy as np
import pytest

from selfsup.evaluation.protocols import knn
from selfsup.features.store import Splits
from selfsup.params import KNN


def slow_knn(bank, bank_labels, queries, k, tau):
    """Section 3.4 of Wu et al. 2018, word by word."""
    predicted = []
    for query in queries:
        similarity = []
        for image in bank:
            dot = sum(float(a) * float(b) for a, b in zip(query, image, strict=True))
            similarity.append(dot / (math.hypot(*map(float, query)) * math.hypot(*map(float, image))))
        nearest = sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]
        votes = dict.fromkeys(range(max(bank_labels) + 1), 0.0)
        for i in nearest:
            votes[int(bank_labels[i])] += math.exp(similarity[i] / tau)
        predicted.append(max(votes, key=votes.get))
    return predicted


def blobs(rng, n, classes=4, width=6, noise=0.8):
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return (centres[labels] + noise * rng.normal(size=(n, width))).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 3, 10, 50])
@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_votes_equal_the_slow_transcription(k, tau):
    rng = np.random.default_rng(k)
    bank, labels = blobs(rng, 50)
    queries, _ = blobs(rng, 40)
    found = knn.classify([bank], labels, queries, [k], tau)[k]
    assert found.tolist() == slow_knn(bank, labels, queries, k, tau)


def test_blocks_and_several_banks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    bank, _ = blobs(rng, 103)
    queries, _ = blobs(rng, 31)
    whole = knn.search([bank], queries, 20)
    monkeypatch.setattr(knn, "_QUERIES", 7)
    monkeypatch.setattr(knn, "_BANK", 11)
    parts = knn.search([bank[:3], bank[3:60], bank[60:]], queries, 20)
    assert np.array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=0, atol=1e-6)


def test_search_gives_cosines_in_order_whatever_the_lengths():
    bank = np.array([[1e-30, 0], [3, 4], [0, 5e20], [0, 0], [-2, 0]], np.float32)
    similarity, index = knn.search([bank], np.array([[10, 0]], np.float32), 5)
    assert index[0, :2].tolist() == [0, 1]
    assert index[0, 4] == 4
    np.testing.assert_allclose(similarity[0], [1, 0.6, 0, 0, -1], atol=1e-6)


def test_weights_decide_not_the_majority():
    similarity = np.array([[1.0, 0.5, 0.5]], np.float32)
    neighbours = np.array([[1, 0, 0]])
    assert knn.vote(similarity, neighbours, 2, temperature=0.07).tolist() == [1]
    assert knn.vote(similarity, neighbours, 2, temperature=10.0).tolist() == [0]


def test_a_tiny_temperature_is_the_nearest_neighbour_and_does_not_overflow():
    assert knn.vote(np.array([[0.9, 0.89, 0.88]]), np.array([[2, 0, 0]]), 3, temperature=1e-5).tolist() == [2]


def splits(seed=0, sizes=(60, 30, 40)):
    rng = np.random.default_rng(seed)
    parts = [blobs(rng, n) for n in sizes]
    return Splits(*(x for x, _ in parts)), Splits(*(y for _, y in parts))


def test_run_chooses_on_validation_and_tests_with_both_splits_as_bank():
    features, labels = splits()
    result = knn.run(features, labels, KNN(k=[1, 5, 60], temperature=0.07), seed=0)
    readings = {
        k: np.mean(slow_knn(features.train, labels.train, features.validation, k, 0.07) == labels.validation)
        for k in (1, 5, 60)
    }
    k = max(readings, key=readings.get)
    bank, bank_labels = np.concatenate(features[:2]), np.concatenate(labels[:2])
    assert result.metrics["k"] == k
    assert result.predicted.tolist() == slow_knn(bank, bank_labels, features.test, k, 0.07)
    assert result.metrics["top1"] == pytest.approx(np.mean(result.predicted == labels.test))
    p = result.metrics["top1"]
    assert result.metrics["top1_se"] == pytest.approx(math.sqrt(p * (1 - p) / 39))
    for each in (1, 5, 60):
        expected = np.mean(slow_knn(bank, bank_labels, features.test, each, 0.07) == labels.test)
        assert result.metrics[f"top1_k{each}"] == pytest.approx(expected)


def test_the_choice_of_k_never_sees_test_labels():
    features, labels = splits(3)
    params = KNN(k=[1, 2, 3, 5, 10, 40], temperature=0.5)
    chosen = knn.run(features, labels, params, 0).metrics["k"]
    rng = np.random.default_rng(3)
    for _ in range(5):
        shuffled = labels._replace(test=rng.permutation(labels.test))
        assert knn.run(features, shuffled, params, 0).metrics["k"] == chosen


def test_a_k_larger_than_the_bank_takes_the_whole_bank_and_says_so():
    features, labels = splits()
    result = knn.run(features, labels, KNN(k=[5, 200, 1000], temperature=0.07), 0)
    assert [name for name in result.metrics if name.startswith("top1_k")] == ["top1_k5", "top1_k60"]
    assert result.details["notes"] == ["k 200, 1000 exceeds the bank: its 60 images all vote"]


def test_samples_without_a_label_take_no_part():
    features, labels = splits()
    hidden = Splits(*(np.where(np.arange(len(y)) % 3 == 0, -1, y) for y in labels))
    expected = knn.run(
        Splits(*(x[y >= 0] for x, y in zip(features, hidden, strict=True))),
        Splits(*(y[y >= 0] for y in hidden)),
        KNN(k=[3], temperature=0.07),
        0,
    )
    found = knn.run(features, hidden, KNN(k=[3], temperature=0.07), 0)
    assert found.metrics == expected.metrics
    assert len(found.predicted) == (hidden.test >= 0).sum()


def test_knn_accuracy_is_the_share_of_right_votes():
    features, labels = splits()
    expected = np.mean(slow_knn(features.train, labels.train, features.test, 7, 0.07) == labels.test)
    found = knn.knn_accuracy(features.train, labels.train, features.test, labels.test, 7, 0.07)
    assert found == pytest.approx(expected)


def test_knn_accuracy_drops_unlabelled_samples_and_clips_k():
    bank = np.array([[1, 0], [0, 1], [0.99, 0.1]], np.float32)
    queries = np.array([[1, 0.1], [0.1, 1], [1, 1]], np.float32)
    accuracy = knn.knn_accuracy(bank, np.array([0, 1, -1]), queries, np.array([0, 1, -1]), 50, 0.07)
    assert accuracy == 1.0
    assert math.isnan(knn.knn_accuracy(bank, np.full(3, -1), queries, np.array([0, 1, 1]), 5, 0.07))
