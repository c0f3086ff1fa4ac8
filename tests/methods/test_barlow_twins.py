"""Barlow Twins' cross-correlation and loss against plain loops and closed forms."""

import numpy as np
import pytest
import torch

from selfsup.methods.barlow_twins import barlow, cross_correlation
from selfsup.task import Progress
from tests.contract.runs import build


@pytest.fixture
def views():
    return torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_equals_the_paper(views):
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in views.numpy())
    c = np.array([[sum(a[n, i] * b[n, j] for n in range(9)) / 9 for j in range(4)] for i in range(4)])
    np.testing.assert_allclose(cross_correlation(*views).numpy(), c, rtol=1e-10)
    on = sum((1 - c[i, i]) ** 2 for i in range(4))
    off = sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    assert barlow(torch.tensor(c), 0.0051).item() == pytest.approx(on + 0.0051 * off, rel=1e-10)


def test_the_method_scales_and_weighs(hundred, views):
    knobs = {"methods__barlow_twins__scale": 0.3, "methods__barlow_twins__redundancy": 0.02}
    task, _, _ = build("barlow_twins", hundred, double=True, **knobs)
    c = cross_correlation(*views)
    on = sum((1 - c[i, i]) ** 2 for i in range(4))
    off = sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    a, b = views
    found = task.loss({"a": a, "b": b}, Progress(0, 10, 5)).loss.item()
    assert found == pytest.approx(0.3 * (on + 0.02 * off).item(), rel=1e-10)


def test_the_identity_costs_nothing():
    assert barlow(torch.eye(5, dtype=torch.float64), 0.3).item() == 0


def test_shift_and_positive_scale_do_not_matter(views):
    a, b = views
    scale = torch.tensor([3.0, 5.0, 2.0, 40.0], dtype=torch.float64)
    c = cross_correlation(a, b)
    torch.testing.assert_close(cross_correlation(a * scale + 7, b - 2), c, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cross_correlation(-a, b), c, atol=1e-2)
