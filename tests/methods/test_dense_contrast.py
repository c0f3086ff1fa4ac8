"""DenseCL: its losses and its matching against plain loops, the two queues, and what gets no gradient."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.dense_contrast import match, places
from selfsup.task import Progress
from tests.contract.runs import build, moved

START = Progress(0, 10, 5)


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def info_nce(q, k, queue):
    """MoCo's loss of one query."""
    candidates = [math.exp(cosine(q, k) / 0.2), *(math.exp(cosine(q, old) / 0.2) for old in queue)]
    return -math.log(candidates[0] / sum(candidates))


def start(hundred, **knobs):
    overrides = {f"methods__dense_contrast__{name}": value for name, value in knobs.items()}
    task, split, _ = build("dense_contrast", hundred, double=True, **overrides)
    moved(task.target, task.dense_target)
    batch = split.gather(torch.arange(6))
    task.train()
    return task, task.views(batch, Draw(0, 0, batch["id"]))


@pytest.mark.parametrize("backbone", ["conv", "vit"])
def test_equals_the_paper(hundred, backbone):
    task, views = start(hundred, backbone=backbone, dense_weight=0.3)
    with torch.no_grad():
        a, b = task.backbone(views[0]), task.target[0](views[1])
        q, k = task.projector(a["pooled"]).numpy(), task.target[1](b["pooled"]).numpy()
        if backbone == "conv":
            a, b = (torch.stack([x["map"][:, :, i, j] for i in range(2) for j in range(2)], 1) for x in (a, b))
        else:
            a, b = a["tokens"], b["tokens"]
        size = a.shape[:2]
        dense_q = task.dense_projector(a.reshape(-1, a.shape[2])).view(*size, -1).numpy()
        dense_k = task.dense_target(b.reshape(-1, b.shape[2])).view(*size, -1).numpy()
    whole = np.mean([info_nce(x, y, task.queue.keys.numpy()) for x, y in zip(q, k, strict=True)])
    total = []
    for i in range(size[0]):
        for place in range(size[1]):
            best = int(np.argmax([cosine(a[i, place].numpy(), other) for other in b[i].numpy()]))
            total.append(info_nce(dense_q[i, place], dense_k[i, best], task.dense_queue.keys.numpy()))
    output = task(views, START)
    assert output.logs["global_loss"].item() == pytest.approx(whole, rel=1e-7)
    assert output.logs["dense_loss"].item() == pytest.approx(np.mean(total), rel=1e-7)
    assert output.loss.item() == pytest.approx(0.7 * whole + 0.3 * np.mean(total), rel=1e-7)
    task.after_step(output.carried(), START)
    mean = np.mean(dense_k / np.linalg.norm(dense_k, axis=2, keepdims=True), axis=1)
    np.testing.assert_allclose(
        task.dense_queue.keys[-6:].numpy(), mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-8, atol=1e-12
    )
    np.testing.assert_allclose(
        task.queue.keys[-6:].numpy(), k / np.linalg.norm(k, axis=1, keepdims=True), rtol=1e-8, atol=1e-12
    )


def test_each_place_finds_itself_where_it_went():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, 5, generator=generator)
    order = torch.randperm(9, generator=generator)
    assert torch.equal(match(x, 7 * x[:, order]), order.argsort().expand(3, 9))


def test_tokens_that_stand_for_no_place_are_left_out():
    tokens = torch.arange(12.0).view(1, 6, 2)
    assert torch.equal(places({"tokens": tokens}, 2), tokens[:, 2:])


def test_keys_carry_no_gradient_and_their_head_follows(hundred):
    task, views = start(hundred)
    leaves = {name: z.detach().requires_grad_() for name, z in task.embed(views, START).items()}
    output = task.loss(leaves, START)
    output.loss.backward()
    assert {name for name, z in leaves.items() if z.grad is not None} == {"q", "dense_q"}
    before = [p.detach().clone() for p in task.dense_target.parameters()]
    task.after_step(output.carried(), START)
    online = task.dense_projector.parameters()
    for old, theta, xi in zip(before, online, task.dense_target.parameters(), strict=True):
        assert not xi.requires_grad and not torch.equal(xi, old)
        torch.testing.assert_close(xi, 0.99 * old + 0.01 * theta, rtol=1e-9, atol=1e-12)


def test_a_queue_longer_than_the_data_set_is_refused(hundred):
    with pytest.raises(UserError, match=r"methods.dense_contrast.queue: 4096 keys"):
        start(hundred, queue=4096)
