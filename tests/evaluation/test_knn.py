import math

import numpy as np
import pytest

from selfsup.evaluation.protocols import knn
from selfsup.evaluation.result import flat
from selfsup.features.store import Splits
from tests.evaluation.test_neighbours import slow_knn, splits


def test_run_chooses_on_validation_and_tests_with_both_splits_as_bank():
    features, labels = splits()
    result = knn.run(features, labels, knn.Params(k=[1, 5, 60], temperature=0.07), seed=0)
    figures = flat(result)
    readings = {
        k: np.mean(slow_knn(features.train, labels.train, features.validation, k, 0.07) == labels.validation)
        for k in (1, 5, 60)
    }
    k = max(readings, key=readings.get)
    bank, bank_labels = np.concatenate(features[:2]), np.concatenate(labels[:2])
    assert figures["k"] == k
    assert result.predicted.tolist() == slow_knn(bank, bank_labels, features.test, k, 0.07)
    assert figures["top1"] == pytest.approx(np.mean(result.predicted == labels.test))
    p = figures["top1"]
    assert figures["top1_se"] == pytest.approx(math.sqrt(p * (1 - p) / 39))
    for each in (1, 5, 60):
        expected = np.mean(slow_knn(bank, bank_labels, features.test, each, 0.07) == labels.test)
        assert figures[f"top1_k{each}"] == pytest.approx(expected)


def test_the_choice_of_k_never_sees_test_labels():
    features, labels = splits(3)
    params = knn.Params(k=[1, 2, 3, 5, 10, 40], temperature=0.5)
    chosen = knn.run(features, labels, params, 0).choices["k"].value
    rng = np.random.default_rng(3)
    for _ in range(5):
        shuffled = labels._replace(test=rng.permutation(labels.test))
        assert knn.run(features, shuffled, params, 0).choices["k"].value == chosen


def test_a_k_larger_than_the_bank_takes_the_whole_bank_and_says_so():
    features, labels = splits()
    result = knn.run(features, labels, knn.Params(k=[5, 200, 1000], temperature=0.07), 0)
    assert [name for name in flat(result) if name.startswith("top1_k")] == ["top1_k5", "top1_k60"]
    assert result.notes == ["k 200, 1000 exceeds the bank: its 60 images all vote"]


def test_samples_without_a_label_take_no_part():
    features, labels = splits()
    hidden = Splits(*(np.where(np.arange(len(y)) % 3 == 0, -1, y) for y in labels))
    expected = knn.run(
        Splits(*(x[y >= 0] for x, y in zip(features, hidden, strict=True))),
        Splits(*(y[y >= 0] for y in hidden)),
        knn.Params(k=[3], temperature=0.07),
        0,
    )
    found = knn.run(features, hidden, knn.Params(k=[3], temperature=0.07), 0)
    assert flat(found) == flat(expected)
    assert len(found.predicted) == (hidden.test >= 0).sum()
