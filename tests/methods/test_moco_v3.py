"""MoCo v3: its loss against the paper's with plain loops, its frozen patch projection and its keys."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.moco_v3 import contrast
from selfsup.task import Progress
from selfsup.training.health import layer_norms
from tests.contract.runs import build, moved, trained
from tests.helpers import processes, values

START = Progress(0, 10, 5)


def slow(q, k, tau):
    """Algorithm 1 for one direction, query by query."""
    q, k = ([x / np.linalg.norm(x) for x in z] for z in (q, k))
    total = 0.0
    for i, x in enumerate(q):
        candidates = [math.exp(x @ y / tau) for y in k]
        total -= math.log(candidates[i] / sum(candidates))
    return 2 * tau * total / len(q)


@pytest.fixture
def built(hundred):
    task, split, _ = build("moco_v3", hundred, double=True)
    batch = split.gather(torch.arange(12))
    return task.train(), task.views(batch, Draw(0, 0, batch["id"]))


@pytest.mark.parametrize("tau", [0.05, 0.2, 1.0])
def test_equals_the_paper(tau):
    q, k = np.random.default_rng(0).normal(size=(2, 7, 5))
    assert contrast(torch.tensor(q), torch.tensor(k), tau).item() == pytest.approx(slow(q, k, tau), rel=1e-12)


def test_equal_similarities_give_the_log_of_the_candidates():
    z = torch.ones(9, 4, dtype=torch.float64)
    assert contrast(z, z, 0.3).item() == pytest.approx(2 * 0.3 * math.log(9), rel=1e-12)


def test_a_step_is_both_directions_and_the_keys_get_no_gradient(built):
    task, (a, b) = built
    moved(task.target)
    with torch.no_grad():
        q = [task.predictor(task.projector(task.backbone(x)["pooled"])).numpy() for x in (a, b)]
        k = [task.target[1](task.target[0](x)["pooled"]).numpy() for x in (a, b)]
    output = task((a, b), START)
    expected = slow(q[0], k[1], task.tau) + slow(q[1], k[0], task.tau)
    assert output.loss.item() == pytest.approx(expected, rel=1e-9)
    leaves = {name: z.detach().requires_grad_() for name, z in task.embed((a, b), START).items()}
    task.loss(leaves, START).loss.backward()
    assert {name for name, z in leaves.items() if z.grad is not None} == {"query_a", "query_b"}


@pytest.mark.parametrize("class_token", [False, True])
def test_the_patch_projection_is_frozen_and_the_layers_gradients_are_logged(hundred, class_token):
    options = values()["backbones"]["vit"]["options"] | {"class_token": class_token}
    options["global_pool"] = "token" if class_token else "avg"
    task, split, _ = build("moco_v3", hundred, double=True, backbones__vit__options=options)
    batch = split.gather(torch.arange(12))
    views = task.train().views(batch, Draw(0, 0, batch["id"]))
    task(views, START).loss.backward()
    first = list(task.backbone.net.patch_embed.parameters())
    assert first and all(p.grad is None for p in first)
    frozen = {id(p) for p in first}
    assert not any(id(p) in frozen for group in task.groups() for p in group.params)
    norms = layer_norms(task)
    weights = [p for p in task.backbone.parameters() if p.grad is not None and p.ndim == 2]  # not the class token
    assert norms["grad_norm_first"].item() == pytest.approx(weights[0].grad.norm().item())
    assert norms["grad_norm_last"].item() == pytest.approx(weights[-1].grad.norm().item())
    assert weights[0] is task.backbone.net.blocks[0].attn.qkv.weight


def test_the_curves_have_the_layers_gradients(hundred, tmp_path):
    result = processes(1, trained, "moco_v3", hundred, tmp_path, {"pretrain__epochs": 1})
    assert all(0 < row["grad_norm_first"] < row["grad_norm"] for row in result.rows)
    assert all(0 < row["grad_norm_last"] < row["grad_norm"] for row in result.rows)


def test_the_patch_projection_trains_where_it_is_not_frozen(hundred):
    task, split, _ = build("moco_v3", hundred, double=True, methods__moco_v3__freeze_patch=False)
    batch = split.gather(torch.arange(12))
    task(task.views(batch, Draw(0, 0, batch["id"])), START).loss.backward()
    assert task.backbone.net.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_network_without_patches_is_refused_in_one_line(hundred):
    with pytest.raises(UserError, match=r"^methods.moco_v3.freeze_patch: .* set false"):
        build("moco_v3", hundred, double=False, methods__moco_v3__backbone="conv")
    build("moco_v3", hundred, double=False, methods__moco_v3__backbone="conv", methods__moco_v3__freeze_patch=False)


def test_the_heads_end_in_a_batch_norm(built):
    task, views = built
    for z in task.embed(views, START).values():
        torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-9, rtol=0)


def test_the_momentum_rises_to_one(built):
    task, _ = built
    moved(task.target)
    start = [p.detach().clone() for p in task.target.parameters()]
    online = [*task.backbone.parameters(), *task.projector.parameters()]
    task.after_step({}, Progress(10, 10, 5))
    assert all(torch.equal(xi, old) for old, xi in zip(start, task.target.parameters(), strict=True))
    task.after_step({}, START)
    for old, theta, xi in zip(start, online, task.target.parameters(), strict=True):
        torch.testing.assert_close(xi, 0.99 * old + 0.01 * theta, rtol=1e-9, atol=1e-9)
