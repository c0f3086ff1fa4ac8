"""Instance discrimination: both losses against the paper's with plain loops, and the bank."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.instance_discrimination import full_softmax, nce
from selfsup.task import Progress
from tests.contract.runs import build, two_equal_one

START = Progress(0, 10, 5)
TAU, M = 0.07, 20


def slow_softmax(f, bank, ids):
    """Equation 2, image by image."""
    total = 0.0
    for x, i in zip(f, ids, strict=True):
        scores = [math.exp(v @ x / np.linalg.norm(x) / TAU) for v in bank]
        total -= math.log(scores[i] / sum(scores))
    return total / len(f)


def slow_nce(f, bank, ids, noise, z):
    """Equations 4 to 7, noise image by noise image; `z` is the constant of equation 8."""
    n, total = len(bank), 0.0
    for x, i, others in zip(f, ids, noise, strict=True):

        def h(j, x=x):
            p = math.exp(bank[j] @ x / np.linalg.norm(x) / TAU) / z
            return p / (p + len(noise[0]) / n)

        total -= math.log(h(i)) + sum(math.log(1 - h(j)) for j in others)
    return total / len(f)


def start(hundred, negatives):
    knobs = {"negatives": negatives, "momentum": 0.3, "temperature": TAU}
    overrides = {f"methods__instance_discrimination__{name}": value for name, value in knobs.items()}
    task, split, _ = build("instance_discrimination", hundred, double=True, **overrides)
    batch = split.gather(torch.arange(30, 42))
    task.train()
    views = task.views(batch, Draw(0, 0, batch["id"]))
    with torch.no_grad():
        f = task.projector(task.backbone(views[0])["pooled"])
    return task, views, f


def estimate(task, f, noise):
    """Equation 8: Z is n times the mean over the noise of the first batch."""
    f, bank = f.numpy(), task.bank.numpy()
    found = [
        math.exp(bank[j] @ x / np.linalg.norm(x) / TAU) for x, js in zip(f, noise.tolist(), strict=True) for j in js
    ]
    return len(bank) * np.mean(found)


def test_the_full_softmax_equals_the_paper(hundred):
    task, views, f = start(hundred, 0)
    expected = slow_softmax(f.numpy(), task.bank.numpy(), views[1].tolist())
    assert task(views, START).loss.item() == pytest.approx(expected, rel=1e-9)


def test_nce_equals_the_paper(hundred):
    task, views, f = start(hundred, M)
    _, ids, noise = views
    assert noise.shape == (12, M) and ids.tolist() == list(range(30, 42))
    expected = slow_nce(f.numpy(), task.bank.numpy(), ids.tolist(), noise.tolist(), estimate(task, f, noise))
    assert task(views, START).loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_constant_is_estimated_once(hundred):
    task, views, f = start(hundred, M)
    first = estimate(task, f, views[2])
    task.after_step(task(views, START).carried(), START)
    assert task.log_z.exp().item() * task.images == pytest.approx(first, rel=1e-9)
    task.bank.copy_(task.bank.flip(0))
    _, ids, noise = views
    with torch.no_grad():
        f = task.projector(task.backbone(views[0])["pooled"])
    expected = slow_nce(f.numpy(), task.bank.numpy(), ids.tolist(), noise.tolist(), first)
    output = task(views, START)
    assert output.loss.item() == pytest.approx(expected, rel=1e-9)
    task.after_step(output.carried(), START)
    assert task.log_z.exp().item() * task.images == pytest.approx(first, rel=1e-9)
    assert {"log_z", "estimated", "bank"} <= task.state_dict().keys()


def test_a_temperature_far_down_does_not_overflow_the_constant(hundred):
    """e^(cosine / tau) leaves float32; in logarithms the step is that of float64."""
    knobs = {"negatives": M, "temperature": 0.002}
    overrides = {f"methods__instance_discrimination__{name}": value for name, value in knobs.items()}
    losses, constants = [], []
    for double in (False, True):
        task, split, _ = build("instance_discrimination", hundred, double=double, **overrides)
        batch = split.gather(torch.arange(30, 42))
        output = task.train()(task.views(batch, Draw(0, 0, batch["id"])), START)
        output.loss.backward()
        assert all(p.grad.isfinite().all() for p in task.parameters())
        task.after_step(output.carried(), START)
        losses.append(output.loss.item())
        constants.append(task.log_z.item())
    assert constants[0] > 89  # e^89 is beyond float32
    assert constants[0] == pytest.approx(constants[1], rel=1e-3) and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_noise_is_drawn_from_all_images_anew_each_epoch(hundred):
    task, _, _ = start(hundred, M)
    noise = torch.cat([Draw(0, epoch, torch.arange(12)).integers("noise", task.images, M) for epoch in range(20)])
    assert noise.unique().numel() == task.images and noise.min() == 0 and noise.max() == task.images - 1
    assert not torch.equal(noise[:12], noise[12:24])


def test_the_bank_follows_its_own_images_by_momentum(hundred):
    task, views, f = start(hundred, 0)
    before = task.bank.clone()
    output = task(views, START)
    assert torch.equal(task.bank, before)
    task.after_step(output.carried(), START)
    moved = 0.3 * before[30:42] + 0.7 * f / f.norm(dim=1, keepdim=True)
    expected = before.clone()
    expected[30:42] = moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(task.bank, expected, rtol=1e-9, atol=1e-12)


def test_equal_features_give_the_log_of_the_images():
    s = torch.zeros(3, 50, dtype=torch.float64)
    assert full_softmax(s, torch.tensor([0, 7, 49])).item() == pytest.approx(math.log(50), rel=1e-12)
    # P = 1 / n for all: h = 1 / (1 + m)
    found = nce(torch.zeros(3), torch.zeros(3, M), torch.tensor(math.log(50.0)), 50).item()
    assert found == pytest.approx(math.log(1 + M) + M * math.log((1 + M) / M), rel=1e-5)


def test_more_noise_than_images_is_refused_in_one_line(hundred):
    with pytest.raises(UserError, match=r"^methods.instance_discrimination.negatives: 4096 .* 0 for the full softmax$"):
        start(hundred, 4096)


def test_the_full_softmax_is_the_same_on_two_processes(hundred, tmp_path):
    two_equal_one("instance_discrimination", hundred, tmp_path, negatives=0)
