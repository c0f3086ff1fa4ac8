"""The measures that need no label, on features whose answer is known, in float64 and float32."""

import math

import numpy as np
import pytest
import torch

from selfsup.features import measures

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@BOTH
def test_rankme_of_an_isotropic_set_is_its_width(dtype):
    q = torch.linalg.qr(torch.tensor(normal(64, 16), dtype=dtype)).Q
    assert measures.rankme(7 * q).item() == pytest.approx(16, rel=1e-4)
    assert measures.rankme(q.T).item() == pytest.approx(16, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_rankme_of_a_line_is_one(scale):
    line = torch.outer(torch.arange(1.0, 50), torch.arange(1.0, 9))
    assert measures.rankme(scale * line.double()).item() == pytest.approx(1, abs=1e-9)
    assert measures.rankme(line).item() == pytest.approx(1, abs=1e-4)


@BOTH
def test_rankme_of_given_singular_values(dtype):
    u, v = (torch.linalg.qr(torch.tensor(normal(rows, 3, seed=rows), dtype=dtype)).Q for rows in (30, 5))
    p = torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
    eps = 1e-7 if dtype == torch.float32 else 0.0  # the paper's, on all five values
    expected = math.exp(-sum(x * math.log(x) for x in [*(p.double() + eps).tolist(), *[eps] * 2 * bool(eps)]))
    assert measures.rankme(u @ torch.diag(10 * p) @ v.T).item() == pytest.approx(expected, rel=2e-6)


@BOTH
def test_rankme_of_nothing_but_zeros_is_zero(dtype):
    assert measures.rankme(torch.zeros(10, 4, dtype=dtype)).item() == 0


def test_uniformity_equals_its_double_sum():
    z = normal(12, 4)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    terms = [math.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i in range(12) for j in range(12) if i < j]
    assert measures.uniformity(torch.tensor(z)).item() == pytest.approx(math.log(sum(terms) / len(terms)))


def test_uniformity_of_one_place_is_zero_and_of_opposite_ones_minus_eight():
    one = torch.tensor([[0.6, 0.8]] * 5, dtype=torch.float64)
    assert measures.uniformity(one).item() == pytest.approx(0, abs=1e-12)
    assert measures.uniformity(torch.tensor([[1.0, 0], [-1.0, 0]])).item() == pytest.approx(-8)


def test_spread_equals_its_loop():
    x = normal(9, 3)
    z = [row / math.sqrt(sum(value**2 for value in row)) for row in x]
    means = [sum(row[d] for row in z) / 9 for d in range(3)]
    deviations = [math.sqrt(sum((row[d] - means[d]) ** 2 for row in z) / 8) for d in range(3)]
    assert measures.spread(torch.tensor(x)).item() == pytest.approx(math.sqrt(3) * sum(deviations) / 3)


def test_spread_is_1_for_isotropic_and_0_for_collapsed():
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert measures.spread(z).item() == pytest.approx(1, abs=0.02)
    assert measures.spread(torch.ones(50, 64) + 1e-4 * z[:50]).item() < 0.01


def test_the_sample_is_bounded_and_seeded(monkeypatch):
    monkeypatch.setattr(measures, "SAMPLE", 40)
    monkeypatch.setattr(measures, "PAIRS", 10)
    features = normal(200, 50).astype(np.float32)
    found = measures.label_free(features, 0)
    assert found == measures.label_free(features, 0)
    assert found != measures.label_free(features, 1)
    assert found["rankme"] <= 40
    assert found["width"] == 50
    rows = features[np.random.default_rng(0).permutation(200)[:10]].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    terms = [math.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(rows) for b in rows[:i]]
    assert found["uniformity"] == pytest.approx(math.log(np.mean(terms)), abs=1e-6)


def test_one_image_has_no_pairs():
    found = measures.label_free(normal(1, 4), 0)
    assert (found["rankme"], found["spread"]) == (1, 0) and math.isnan(found["uniformity"])
