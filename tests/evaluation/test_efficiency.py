import pytest
import torch
from torch import nn

from selfsup.evaluation.protocols import efficiency
from selfsup.evaluation.result import Unfit
from tests.evaluation import frozen
from tests.evaluation.test_layers import VIT, backbone

PARAMS = efficiency.Params(batch=8, passes=2)


def test_counts_of_a_known_network_are_those_on_paper():
    net, views = backbone(width=2), torch.rand(8, 3, 16, 16)
    maps = [
        (3, 2, 16),
        (2, 4, 16),
        (4, 4, 8),
        (4, 4, 8),
        (4, 8, 8),
        (8, 16, 4),
        (16, 16, 2),
        (16, 16, 2),
    ]  # in, out, side
    assert efficiency.flops(net, views[:1]) == sum(2 * 9 * a * b * side**2 for a, b, side in maps)
    assert efficiency.flops(net, views) == 8 * efficiency.flops(net, views[:1])
    result = efficiency.run(net, frozen.images(), PARAMS, 0)
    weights = sum(9 * a * b + 2 * b for a, b, _ in maps)
    assert result.metrics["parameters"].value == weights
    assert result.metrics["mflops"].value == efficiency.flops(net, views[:1]) / 1e6


def test_attention_counts_whatever_kernel_computes_it():
    net = backbone("vit_tiny_patch16_224", **VIT, class_token=False, global_pool="avg", fc_norm=False)
    tokens, width, depth = 16, 32, 2
    linear = 2 * tokens * (width * 3 * width + width * width + 2 * 4 * width * width)
    attention = 2 * 2 * tokens * tokens * width  # q k^T and the weighted sum of v
    patches = 2 * tokens * width * 3 * 4 * 4
    assert efficiency.flops(net, torch.rand(1, 3, 16, 16)) == depth * (linear + attention) + patches


def test_memory_is_the_largest_sum_of_what_is_alive_at_once():
    net = nn.Sequential(nn.Linear(10, 200, bias=False), nn.Linear(200, 5, bias=False), nn.Linear(5, 100, bias=False))
    weights, x = 10 * 200 + 200 * 5 + 5 * 100, torch.rand(8, 10)
    assert efficiency.peak(net, x) == 4 * (weights + 80 + 8 * 200 + 8 * 5)  # the third layer's output is smaller
    wide = nn.Sequential(*net, nn.Linear(100, 1000, bias=False))
    assert efficiency.peak(wide, x) == 4 * (weights + 100 * 1000 + 80 + 8 * 100 + 8 * 1000)


def test_costs_are_shown_and_never_judged():
    result = efficiency.run(backbone(), frozen.images(), PARAMS, 0)
    assert {key: (one.unit, one.higher_is_better, one.judged) for key, one in result.metrics.items()} == {
        "images_per_second": ("none", True, False),
        "parameters": ("none", False, False),
        "mflops": ("none", False, False),
        "memory": ("none", False, False),
    }
    assert result.metrics["images_per_second"].value > 0 and not efficiency.REPEATABLE
    assert all(one.outcomes is None for one in result.metrics.values())


def test_the_fastest_pass_counts(monkeypatch):
    clock = iter([0, 9, 10, 14, 20, 22, 30, 33])  # passes of 9 (not counted), 4, 2 and 3 seconds
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(clock))
    assert efficiency.speed(nn.Identity(), torch.rand(8, 3), 3) == 4


def test_a_representation_without_a_network_is_left_out():
    with pytest.raises(Unfit, match="has no network to look into"):
        efficiency.run(frozen.Means(), frozen.images(), PARAMS, 0)
