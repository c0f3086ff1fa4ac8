"""BYOL's regression, its target and its momentum; what keeps it from collapsing is tested in tests/contract."""

import math

import numpy as np
import pytest
import torch

from selfsup.methods.byol import regression
from selfsup.nn.ema import cosine_momentum
from selfsup.task import Progress
from tests.contract.runs import build, moved


def test_regression_equals_the_paper():
    q, z = np.random.default_rng(0).normal(size=(2, 6, 4))
    expected = np.mean(
        [np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) for a, b in zip(q, z, strict=True)]
    )
    assert regression(torch.tensor(q), torch.tensor(z)).item() == pytest.approx(expected, rel=1e-12)


def test_regression_is_0_for_the_same_direction_and_4_for_the_opposite():
    q = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert regression(q, 7 * q).item() == pytest.approx(0, abs=1e-12)
    assert regression(q, -q).item() == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize(("fraction", "m"), [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)])
def test_momentum_rises_along_a_cosine(fraction, m):
    assert cosine_momentum([0.99, 1.0], fraction) == pytest.approx(m, rel=1e-12)
    assert cosine_momentum([0.99, 1.0], 0.25) == pytest.approx(1 - 0.01 * (math.cos(math.pi / 4) + 1) / 2, rel=1e-12)


def test_the_loss_of_a_step_is_both_directions_and_the_target_gets_no_gradient(shards):
    task, split, _ = build("byol", shards, double=True)
    task.train()
    batch = split.gather(torch.arange(8))
    from selfsup.draw import Draw

    a, b = task.views(batch, Draw(0, 0, batch["id"]))
    moved(task.target)
    with torch.no_grad():
        q = [task.predictor(task.projector(task.backbone(x)["pooled"])).numpy() for x in (a, b)]
        z = [task.target[1](task.target[0](x)["pooled"]).numpy() for x in (a, b)]

    def half(q, z):
        return np.mean(2 - 2 * (q * z).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1))

    output = task((a, b), Progress(0, 10, 5))
    assert output.loss.item() == pytest.approx(half(q[0], z[1]) + half(q[1], z[0]), rel=1e-10)
    output.loss.backward()
    assert all(p.grad is None for p in task.target.parameters())
    assert all(p.grad is not None for p in task.predictor.parameters())


def test_the_target_follows_by_momentum(shards):
    task, _, _ = build("byol", shards, double=True)
    online = [p.detach().clone() for p in task.backbone.parameters()]
    with torch.no_grad():
        for p in task.backbone.parameters():
            p += 1
    task.after_step({}, Progress(0, 10, 5))
    for start, xi in zip(online, task.target[0].parameters(), strict=True):
        torch.testing.assert_close(xi, start + (1 - task.momentum[0]), rtol=1e-12, atol=1e-12)
