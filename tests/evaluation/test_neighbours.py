import math

import numpy as np
import pytest

from selfsup.evaluation import neighbours
from selfsup.features.store import Splits


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
    found = neighbours.classify([bank], labels, queries, [k], tau)[k]
    assert found.tolist() == slow_knn(bank, labels, queries, k, tau)


def test_blocks_and_several_banks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    bank, _ = blobs(rng, 103)
    queries, _ = blobs(rng, 31)
    whole = neighbours.search([bank], queries, 20)
    monkeypatch.setattr(neighbours, "_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_BANK", 11)
    parts = neighbours.search([bank[:3], bank[3:60], bank[60:]], queries, 20)
    assert np.array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=0, atol=1e-6)


def test_search_gives_cosines_in_order_whatever_the_lengths():
    bank = np.array([[1e-30, 0], [3, 4], [0, 5e20], [0, 0], [-2, 0]], np.float32)
    similarity, index = neighbours.search([bank], np.array([[10, 0]], np.float32), 5)
    assert index[0, :2].tolist() == [0, 1]
    assert index[0, 4] == 4
    np.testing.assert_allclose(similarity[0], [1, 0.6, 0, 0, -1], atol=1e-6)


def test_weights_decide_not_the_majority():
    similarity = np.array([[1.0, 0.5, 0.5]], np.float32)
    labels = np.array([[1, 0, 0]])
    assert neighbours.vote(similarity, labels, 2, temperature=0.07).tolist() == [1]
    assert neighbours.vote(similarity, labels, 2, temperature=10.0).tolist() == [0]


def test_a_tiny_temperature_is_the_nearest_neighbour_and_does_not_overflow():
    assert neighbours.vote(np.array([[0.9, 0.89, 0.88]]), np.array([[2, 0, 0]]), 3, temperature=1e-5).tolist() == [2]


def splits(seed=0, sizes=(60, 30, 40)):
    rng = np.random.default_rng(seed)
    parts = [blobs(rng, n) for n in sizes]
    return Splits(*(x for x, _ in parts)), Splits(*(y for _, y in parts))


def test_knn_accuracy_is_the_share_of_right_votes():
    features, labels = splits()
    expected = np.mean(slow_knn(features.train, labels.train, features.test, 7, 0.07) == labels.test)
    found = neighbours.knn_accuracy(features.train, labels.train, features.test, labels.test, 7, 0.07)
    assert found == pytest.approx(expected)


def test_knn_accuracy_drops_unlabelled_samples_and_clips_k():
    bank = np.array([[1, 0], [0, 1], [0.99, 0.1]], np.float32)
    queries = np.array([[1, 0.1], [0.1, 1], [1, 1]], np.float32)
    accuracy = neighbours.knn_accuracy(bank, np.array([0, 1, -1]), queries, np.array([0, 1, -1]), 50, 0.07)
    assert accuracy == 1.0
    assert math.isnan(neighbours.knn_accuracy(bank, np.full(3, -1), queries, np.array([0, 1, 1]), 5, 0.07))


def test_a_quick_reading_takes_the_papers_temperature():
    features, labels = splits()
    arrays = features.train, labels.train, features.test, labels.test
    assert neighbours.knn_accuracy(*arrays) == neighbours.knn_accuracy(*arrays, k=20, temperature=0.07)


def test_of_equal_similarities_the_first_of_the_bank_comes_first(monkeypatch):
    monkeypatch.setattr(neighbours, "_FIRST", 4)
    monkeypatch.setattr(neighbours, "_BANK", 8)
    bank = np.tile(np.eye(3, dtype=np.float32), (20, 1))
    _, index = neighbours.search([bank[:31], bank[31:]], np.eye(3, dtype=np.float32), 25)
    for query, found in enumerate(index.tolist()):
        own = [i for i in range(60) if i % 3 == query]
        assert found == own + [i for i in range(60) if i % 3 != query][: 25 - 20]


def test_memory_does_not_grow_with_the_bank(monkeypatch):
    """Of a bank that is read in blocks no more than a block is asked for at once."""
    taken = []

    class Bank:
        def __init__(self, array):
            self.array = array

        def __len__(self):
            return len(self.array)

        def __getitem__(self, rows):
            part = self.array[rows]
            taken.append(len(part))
            return part

    monkeypatch.setattr(neighbours, "_FIRST", 8)
    monkeypatch.setattr(neighbours, "_BANK", 16)
    monkeypatch.setattr(neighbours, "_ROWS", 16)
    rng = np.random.default_rng(5)
    bank, queries = rng.normal(size=(200, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    similarity, index = neighbours.search([Bank(bank)], queries, 10)
    (every,) = neighbours.similarities([Bank(bank)], queries)
    assert max(taken) == 16
    assert np.array_equal(index, np.argsort(-every, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(similarity, np.sort(every, axis=1)[:, :-11:-1], atol=1e-6)
