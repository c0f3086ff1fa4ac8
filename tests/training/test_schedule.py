"""Learning rates as functions of the step."""

import math

import pytest
import torch

from selfsup.params import LARS, SGD, AdamW
from selfsup.task import Group, Progress
from selfsup.training.optimizers import apply_schedules, build_optimizer
from selfsup.training.schedule import warmup_cosine


def test_warms_up_then_follows_half_a_cosine():
    lr = warmup_cosine(2.0, 4)
    got = [lr(Progress(k, 10, 5)) for k in range(11)]
    expected = [2 * (k + 1) / 5 for k in range(4)] + [1 + math.cos(math.pi * (k - 4) / 6) for k in range(4, 11)]
    assert got == pytest.approx(expected)
    assert got[-1] == 0 and max(got) == got[4] == 2


def test_groups_follow_their_own_schedules():
    a, b = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    params = SGD(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.1)
    groups = [Group([a]), Group([b], lr=lambda p: 7.0, decay=lambda p: 0.0), Group([])]
    optimizer = build_optimizer(groups, params, warmup_cosine(1.0, 0))
    assert apply_schedules(optimizer, params, Progress(5, 10, 5)) == pytest.approx(0.5)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(pytest.approx(0.5), 0.1), (7.0, 0.0)]


def test_lars_scales_by_the_trust_ratio_and_leaves_undecayed_groups_alone():
    """You et al. 2017: lr * eta |w| / (|g| + beta |w|) (g + beta w), momentum on top."""
    eta, beta = 0.001, 0.1
    w, v = torch.nn.Parameter(torch.tensor([3.0, 4.0])), torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    params = LARS(name="lars", lr=1.0, momentum=0.9, weight_decay=beta, trust_coefficient=eta)
    optimizer = build_optimizer([Group([w]), Group([v], decay=lambda p: 0.0)], params, lambda p: 1.0)
    apply_schedules(optimizer, params, Progress(0, 1, 1))
    gradient = torch.tensor([0.6, 0.8])
    w.grad, v.grad = gradient.clone(), gradient.clone()
    start = w.detach().clone()
    optimizer.step()
    step = gradient + beta * start
    ratio = eta * 5 / (1 + beta * 5)
    torch.testing.assert_close(w.detach(), start - ratio * step)
    torch.testing.assert_close(v.detach(), start - gradient)


def test_adamw_takes_its_betas():
    params = AdamW(name="adamw", lr=1.0, betas=[0.8, 0.9], weight_decay=0.0)
    optimizer = build_optimizer([Group([torch.nn.Parameter(torch.ones(1))])], params, lambda p: 1.0)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
