"""Global batch norm on two processes equals torch's on one, values, gradients and running statistics."""

import copy

import pytest
import torch
from torch import nn

from selfsup.nn.batchnorm import globalise
from selfsup.nn.distributed import gather, mean_over_ranks, rank, sum_over_ranks, world
from tests.helpers import processes


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(16)).double()


def step():
    """Two forward passes and one backward of half of a batch a process; gathered results."""
    if world() == 1 and torch.distributed.is_available() and "RANK" in __import__("os").environ:
        torch.distributed.init_process_group("gloo")
    net = globalise(layers(), torch.device("cpu"))
    x = torch.randn(8, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = slice(rank() * 8 // world(), (rank() + 1) * 8 // world())
    own = x[rows].clone().requires_grad_()
    net(own.detach())
    y = net(own)
    target = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = ((gather(y) - target) ** 3).mean()  # of the whole batch, on every rank
    loss.backward()
    gradients = [mean_over_ranks(p.grad).numpy() for p in net.parameters()]
    return {
        "loss": loss.item(),
        "x": gather(own.grad / world()).numpy(),
        "gradients": gradients,
        "buffers": [b.numpy() for b in net.buffers()],
        "sum": sum_over_ranks(torch.tensor([1.0 + rank()])).item(),
    }


def test_two_processes_equal_one():
    one, two = processes(1, step), processes(2, step)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert two["sum"] == 3.0
    for name in ("gradients", "buffers"):
        for a, b in zip(one[name], two[name], strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.tensor(one["x"]), torch.tensor(two["x"]), rtol=1e-10, atol=1e-12)


def test_one_process_is_torchs_own_and_survives_deepcopy():
    plain = layers()
    ours = copy.deepcopy(globalise(copy.deepcopy(plain), torch.device("cpu")))
    x = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    assert torch.equal(plain(x), ours(x))
    assert list(plain.state_dict()) == list(ours.state_dict())


def test_timms_batch_norm_keeps_its_activation():
    from timm.layers import BatchNormAct2d

    from selfsup.nn import batchnorm

    norm = BatchNormAct2d(3).train()
    x = torch.randn(6, 3, 4, 4)
    expected = copy.deepcopy(norm)(x)
    torch.testing.assert_close(norm.act(norm.drop(batchnorm._normalise(norm, x))), expected)
