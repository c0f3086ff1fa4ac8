"""Alignment and uniformity on points made by hand."""

import math

import numpy as np
import pytest
import torch

from selfsup.methods.align_uniform import alignment, uniformity
from selfsup.task import Progress
from tests.contract.runs import build


def test_points_on_a_circle():
    """Four points at right angles: squared distances 2 (twice) and 4 from each."""
    z = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    for t in (1.0, 2.0):
        expected = math.log((2 * math.exp(-2 * t) + math.exp(-4 * t)) / 3)
        assert uniformity(z, t).item() == pytest.approx(expected, rel=1e-12)
    turned = z.roll(1, 0)
    for alpha in (1.0, 2.0, 3.0):
        assert alignment(z, turned, alpha).item() == pytest.approx(2 ** (alpha / 2), rel=1e-12)


def test_collapsed_points_are_aligned_and_not_uniform():
    z = torch.tensor([[0.6, 0.8]] * 5, dtype=torch.float64)
    assert alignment(z, z, 2.0).item() < 1e-20 and uniformity(z, 2.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("t", [26.0, 60.0, 1000.0])
def test_a_sharp_potential_leaves_neither_loss_nor_gradient(t):
    """e^(-4 t) is 0 in float32 from t = 26 on; only the nearest pair counts then."""
    z = torch.eye(5, requires_grad=True)  # squared distances are 2
    uniformity(z, t).backward()
    assert uniformity(z, t).item() == pytest.approx(-2 * t, rel=1e-6)
    assert z.grad.isfinite().all() and z.grad.abs().max() > 0
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]]), t).item() == pytest.approx(-4 * t, rel=1e-6)


def test_equal_plain_loops():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 3))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    pairs = [math.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i in range(6) for j in range(6) if i != j]
    assert uniformity(torch.tensor(a), 2.0).item() == pytest.approx(math.log(np.mean(pairs)), rel=1e-12)
    expected = np.mean([np.linalg.norm(x - y) ** 1.5 for x, y in zip(a, b, strict=True)])
    assert alignment(torch.tensor(a), torch.tensor(b), 1.5).item() == pytest.approx(expected, rel=1e-12)


def test_the_method_weighs_both_and_takes_the_mean_of_the_views(hundred):
    knobs = {"alpha": 1.5, "t": 3.0, "align_weight": 0.6, "uniform_weight": 1.7}
    task, _, _ = build(
        "align_uniform", hundred, double=True, **{f"methods__align_uniform__{k}": x for k, x in knobs.items()}
    )
    a, b = np.random.default_rng(1).normal(size=(2, 6, 3))
    loss = task.loss({"a": torch.tensor(a), "b": torch.tensor(b)}, Progress(0, 10, 5)).loss.item()
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    spread = [
        math.log(np.mean([math.exp(-3 * np.sum((z[i] - z[j]) ** 2)) for i in range(6) for j in range(6) if i != j]))
        for z in (a, b)
    ]
    near = np.mean([np.linalg.norm(x - y) ** 1.5 for x, y in zip(a, b, strict=True)])
    assert loss == pytest.approx(0.6 * near + 1.7 * np.mean(spread), rel=1e-10)


def test_the_gradient_is_finite_where_views_coincide():
    a = torch.tensor([[1.0, 0.0]], requires_grad=True)
    alignment(a, a.detach().clone(), 1.0).backward()
    assert a.grad.isfinite().all()
