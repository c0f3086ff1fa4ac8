"""Sinkhorn's codes against plain loops, and where exponentials would overflow."""

import numpy as np
import pytest
import torch

from selfsup.nn.sinkhorn import sinkhorn


def scores(n=40, k=6, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_loops_over_columns_and_rows(rounds):
    s = scores()
    q = np.exp((s.numpy() - s.numpy().max()) / 0.5)
    for _ in range(rounds):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for n in range(len(q)):
            q[n] /= q[n].sum() * len(q)
    torch.testing.assert_close(sinkhorn(s, 0.5, rounds), torch.tensor(q) * len(q), rtol=1e-11, atol=1e-14)


def test_rows_sum_to_1_exactly_and_columns_tend_to_equal_shares():
    s = scores()
    off = []
    for rounds in (1, 3, 30):
        q = sinkhorn(s, 0.2, rounds)
        torch.testing.assert_close(q.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-14)
        off.append((q.sum(0) * 6 / 40 - 1).abs().max().item())
    assert off[0] > off[1] > 0.01 and off[2] < 1e-3


def test_in_float32_whatever_comes_in_and_no_score_overflows():
    for dtype in (torch.bfloat16, torch.float32):
        q = sinkhorn(scores(scale=10, dtype=dtype), 0.05)  # exponents to 600
        assert q.dtype == torch.float32 and q.isfinite().all()
        torch.testing.assert_close(q.sum(1), torch.ones(40), rtol=0, atol=1e-6)
    plain = sinkhorn(scores(dtype=torch.float32), 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(scores(dtype=torch.float32), 0.05), plain)


def test_equal_scores_give_equal_shares_and_no_gradient():
    q = sinkhorn(torch.ones(5, 4, requires_grad=True), 0.05)
    torch.testing.assert_close(q, torch.full((5, 4), 0.25))
    assert not q.requires_grad
