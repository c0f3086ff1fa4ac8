"""Heads fit what stands beside them, and have the norms and activations of their papers."""

import math

import pytest
import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.nn.heads import mlp, start_small
from selfsup.params import HeadParams
from tests.contract.runs import build

HEAD = HeadParams(layers=3, hidden=8, out=4)


@pytest.mark.parametrize("method", ["byol", "simsiam", "moco_v3"])
def test_a_predictor_of_another_width_is_refused_in_one_line(hundred, method):
    head = {"layers": 2, "hidden": 8, "out": 17}
    with pytest.raises(UserError, match=rf"methods\.{method}\.predictor\.out: 17 is not .*; set 16") as error:
        build(method, hundred, double=False, **{f"methods__{method}__predictor": head})
    assert "\n" not in str(error.value)
    build(method, hundred, double=False, **{f"methods__{method}__predictor": head | {"layers": 0}})  # none at all


def kinds(module):
    return [type(part).__name__ for part in module]


def test_the_usual_head_has_batch_norm_and_relu():
    head = mlp(5, HEAD)
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [part.bias is not None for part in head if isinstance(part, nn.Linear)] == [False, False, True]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_a_head_equals_its_formula(norm, activation):
    torch.manual_seed(0)
    head = mlp(5, HEAD, norm=norm, activation=activation).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    linear = [part for part in head if isinstance(part, nn.Linear)]
    norms = [part for part in head if isinstance(part, nn.BatchNorm1d | nn.LayerNorm)]
    assert len(norms) == (0 if norm == "none" else 2)
    for part in norms:
        nn.init.normal_(part.weight)
        nn.init.normal_(part.bias)
    z = x
    for i, layer in enumerate(linear):
        z = z @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        if i < 2 and norm != "none":
            dim = 0 if norm == "batch" else 1
            z = (z - z.mean(dim, keepdim=True)) / (z.var(dim, correction=0, keepdim=True) + 1e-5).sqrt()
            z = z * norms[i].weight + norms[i].bias
        if i < 2:
            z = z.clamp(min=0) if activation == "relu" else z * (1 + torch.erf(z / math.sqrt(2))) / 2
    torch.testing.assert_close(head(x), z, rtol=1e-10, atol=1e-12)
    assert all(part.bias is not None for part in linear) or norm == "batch"


def test_a_small_start_is_a_normal_distribution_cut_off_with_biases_of_0():
    torch.manual_seed(0)
    head = mlp(300, HeadParams(layers=2, hidden=400, out=300), norm="none")
    start_small(head)
    for layer in (head[0], head[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02) and layer.weight.abs().max() <= 2
        assert layer.weight.abs().max() > 3 * 0.02  # not cut off at two deviations
        assert not layer.bias.any()


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_dinos_and_ibots_networks_are_free_of_batch_norm(hundred, method):
    task, _, _ = build(method, hundred, double=False)
    assert not [part for part in task.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for head in (task.head, task.teacher[1]):
        assert kinds(head[0]) == ["Linear", "GELU", "Linear"] and kinds(head) == ["Sequential", "CosineLayer"]
        assert head[0][0].weight.std().item() == pytest.approx(0.02, rel=0.1) and not head[0][0].bias.any()


@pytest.mark.parametrize("method", ["dino", "ibot"])
@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_dinos_and_ibots_heads_have_the_norm_and_activation_of_the_block(hundred, method, norm, kind):
    knobs = {"layers": 2, "hidden": 32, "out": 16, "norm": norm, "activation": "relu"}
    task, _, _ = build(method, hundred, double=False, **{f"methods__{method}__projector": knobs})
    for head in (task.head, task.teacher[1]):
        assert kinds(head[0]) == ["Linear", kind.__name__, "ReLU", "Linear"]


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_a_head_without_its_norm_is_refused_in_one_line(hundred, method):
    head = {"layers": 2, "hidden": 32, "out": 16, "activation": "gelu"}
    with pytest.raises(UserError, match=rf"methods\.{method}\.projector\.norm: missing parameter; add it"):
        build(method, hundred, double=False, **{f"methods__{method}__projector": head})


@pytest.mark.parametrize(("method", "heads"), [("simsiam", ["projector"]), ("moco_v3", ["projector", "predictor"])])
def test_the_norm_on_an_output_has_no_scale_and_shift(hundred, method, heads):
    """As in the authors' code; a linear layer before it has no bias."""
    task, _, _ = build(method, hundred, double=False)
    for name in heads:
        *_, linear, norm = getattr(task, name)
        assert isinstance(norm, nn.BatchNorm1d) and not norm.affine and norm.track_running_stats
        assert linear.bias is None
