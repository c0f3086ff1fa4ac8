import math

import numpy as np
import pytest

from selfsup.features import measures as label_free


def test_rankme_of_an_isotropic_set_is_its_width():
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 16)))
    assert label_free.rankme(q * 7) == pytest.approx(16)
    assert label_free.rankme(q.T) == pytest.approx(16)


def test_rankme_of_a_line_is_one():
    line = np.outer(np.arange(1.0, 50), np.arange(1.0, 9))
    assert label_free.rankme(line) == pytest.approx(1, abs=1e-4)
    assert label_free.rankme(line * 1e-25) == pytest.approx(1, abs=1e-4)


def test_rankme_of_given_singular_values():
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.normal(size=(30, 3)))
    v, _ = np.linalg.qr(rng.normal(size=(5, 3)))
    p = np.array([0.5, 0.3, 0.2])
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert label_free.rankme(u @ np.diag(10 * p) @ v.T) == pytest.approx(expected, rel=1e-6)


def test_rankme_of_nothing_but_zeros_is_zero():
    assert label_free.rankme(np.zeros((10, 4))) == 0


def test_uniformity_equals_its_double_sum():
    x = np.random.default_rng(2).normal(size=(12, 4))
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    terms = [math.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i in range(12) for j in range(12) if i < j]
    assert label_free.uniformity(x) == pytest.approx(math.log(sum(terms) / len(terms)))


def test_uniformity_of_one_point_is_zero_and_of_opposite_ones_minus_eight():
    assert label_free.uniformity(np.tile([3.0, 4.0], (5, 1))) == pytest.approx(0, abs=1e-12)
    assert label_free.uniformity(np.array([[1.0, 0], [-9.0, 0]])) == pytest.approx(-8)


def test_deviation_collapsed_and_even():
    assert label_free.deviation(np.tile([1.0, 2.0, 2.0], (9, 1))) == pytest.approx(0, abs=1e-12)
    even = np.random.default_rng(3).normal(size=(20_000, 25))
    assert label_free.deviation(even) == pytest.approx(1 / 5, rel=0.01)


def test_the_sample_is_bounded_and_seeded(monkeypatch):
    monkeypatch.setattr(label_free, "SAMPLE", 40)
    monkeypatch.setattr(label_free, "PAIRS", 10)
    features = np.random.default_rng(4).normal(size=(200, 50)).astype(np.float32)
    found = label_free.label_free(features, 0)
    assert found == label_free.label_free(features, 0)
    assert found != label_free.label_free(features, 1)
    assert found["rankme"] <= 40
    assert found["width"] == 50
    assert found["isotropic_std"] == pytest.approx(50**-0.5)
