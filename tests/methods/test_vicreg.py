"""VICReg's three terms against plain loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from selfsup.methods.vicreg import hinge, off_diagonal
from selfsup.task import Progress
from tests.contract.runs import build


def test_closed_forms():
    assert hinge(torch.zeros(4, 3, dtype=torch.float64)).item() == pytest.approx(1 - 0.01, rel=1e-12)  # sqrt(1e-4)
    wide = torch.tensor([[5.0, -5.0], [-5.0, 5.0]], dtype=torch.float64)
    assert hinge(wide).item() == 0
    variance = 50.0  # of each dimension, and minus the covariance, with N - 1 in the denominator
    assert off_diagonal(wide).item() == pytest.approx(2 * variance**2 / 2, rel=1e-12)
    assert off_diagonal(torch.eye(3, dtype=torch.float64)[:, :1]).item() == 0


def test_equal_plain_loops():
    z = np.random.default_rng(0).normal(scale=0.7, size=(7, 4))
    spread = [math.sqrt(sum((z[n, d] - z[:, d].mean()) ** 2 for n in range(7)) / 6 + 1e-4) for d in range(4)]
    assert hinge(torch.tensor(z)).item() == pytest.approx(np.mean([max(0, 1 - s) for s in spread]), rel=1e-12)
    c = np.cov(z.T)
    expected = sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    assert off_diagonal(torch.tensor(z)).item() == pytest.approx(expected, rel=1e-12)


def test_the_weights_and_the_reductions(hundred):
    """Invariance is a mean over batch and dimensions, variance half the sum of both views', covariance their sum."""
    task, _, _ = build("vicreg", hundred, double=True)
    a, b = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    invariance = sum(((a - b) ** 2).flatten().tolist()) / 30
    expected = 25 * invariance + 25 * (hinge(a) + hinge(b)) / 2 + off_diagonal(a) + off_diagonal(b)
    assert task.loss({"a": a, "b": b}, Progress(0, 10, 5)).loss.item() == pytest.approx(expected.item(), rel=1e-12)
