"""NT-Xent against a transcription of equation 1 with plain loops, and its closed forms."""

import math

import numpy as np
import pytest
import torch

from selfsup.methods.simclr import nt_xent


def slow_nt_xent(a, b, tau):
    """Equation 1 of Chen et al. 2020, pair by pair."""
    z = [*a, *b]
    n = len(a)

    def sim(i, j):
        return float(np.dot(z[i], z[j]) / (np.linalg.norm(z[i]) * np.linalg.norm(z[j])))

    def ell(i, j):
        denominator = sum(math.exp(sim(i, k) / tau) for k in range(2 * n) if k != i)
        return -math.log(math.exp(sim(i, j) / tau) / denominator)

    return sum(ell(k, k + n) + ell(k + n, k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("tau", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("n", [2, 7])
def test_equals_the_paper(n, tau):
    a, b = np.random.default_rng(n).normal(size=(2, n, 5))
    assert nt_xent(torch.tensor(a), torch.tensor(b), tau).item() == pytest.approx(slow_nt_xent(a, b, tau), rel=1e-12)


def test_identical_embeddings_give_log_of_the_candidates():
    z = torch.ones(9, 4, dtype=torch.float64)
    assert nt_xent(z, z, 0.3).item() == pytest.approx(math.log(2 * 9 - 1), rel=1e-12)


def test_the_positive_is_the_other_view():
    z = torch.eye(6, dtype=torch.float64)
    assert nt_xent(z, z, 0.05) < 1e-6 < nt_xent(z, z.roll(1, 0), 0.05)


def test_gradient_equals_finite_differences():
    a, b = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (a.requires_grad_(), b.requires_grad_()))


def test_computes_in_float32_under_autocast():
    a, b = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        low = nt_xent(a, b, 0.1)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(nt_xent(a, b, 0.1).item(), rel=1e-6)
