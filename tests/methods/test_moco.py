"""MoCo: its loss against the paper's with plain loops, its keys, its queue and its key encoder."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.moco import contrast
from selfsup.task import Progress
from tests.contract.runs import build, moved

START = Progress(0, 10, 5)


def slow(q, k, queue, tau):
    """Equation 1 for every query: its key against it and all keys of the queue."""
    total = []
    for x, y in zip(q, k, strict=True):
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        candidates = [math.exp(x @ y / tau), *(math.exp(x @ old / tau) for old in queue)]
        total.append(-math.log(candidates[0] / sum(candidates)))
    return np.mean(total)


@pytest.fixture
def built(hundred):
    task, split, _ = build("moco", hundred, double=True)
    moved(task.target)
    batch = split.gather(torch.arange(12))
    return task.train(), task.views(batch, Draw(0, 0, batch["id"])), batch


def test_equals_the_paper(built):
    task, views, _ = built
    with torch.no_grad():
        q = task.projector(task.backbone(views[0])["pooled"]).numpy()
        k = task.target[1](task.target[0](views[1])["pooled"]).numpy()
    found = task(views, START).loss.item()
    assert found == pytest.approx(slow(q, k, task.queue.keys.numpy(), task.tau), rel=1e-9)


def test_equal_similarities_give_the_log_of_the_candidates():
    """The bound on mutual information counts the positive: K + 1."""
    q = torch.ones(5, 4)
    assert contrast(q, q, q[:1].expand(6, 4) / 2, 0.2).item() == pytest.approx(math.log(7))


def test_keys_carry_no_gradient(built):
    task, views, _ = built
    z = task.embed(views, START)
    assert z["q"].requires_grad and not z["k"].requires_grad
    leaves = {name: x.detach().requires_grad_() for name, x in z.items()}
    task.loss(leaves, START).loss.backward()  # as chunks do, which make leaves of all
    assert leaves["q"].grad.abs().sum() > 0 and leaves["k"].grad is None
    task(views, START).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in task.target.parameters())


def test_queries_and_keys_have_batch_norms_of_their_own(built):
    """A query does not depend on the keys' view, nor on its batch's."""
    task, views, _ = built
    z = task.embed(views, START)
    other = task.embed((views[0], 1 - views[1]), START)
    assert torch.equal(other["q"], z["q"]) and not torch.allclose(other["k"], z["k"])


def test_a_step_appends_its_keys_after_they_were_positives(built):
    task, views, _ = built
    before = task.queue.keys.clone()
    output = task(views, START)
    assert torch.equal(task.queue.keys, before)
    task.after_step(output.carried(), START)
    assert torch.equal(task.queue.keys[:-12], before[12:])
    keys = output.embeddings[1]
    torch.testing.assert_close(task.queue.keys[-12:], keys / keys.norm(dim=1, keepdim=True), rtol=1e-12, atol=0)


def test_the_key_encoder_follows_by_momentum(built):
    task, views, _ = built
    start = [p.detach().clone() for p in task.target.parameters()]
    online = [*task.backbone.parameters(), *task.projector.parameters()]
    with torch.no_grad():
        for p in online:
            p += 1
    task.after_step(task(views, START).carried(), START)
    assert len(start) == len(online)
    for before, theta, xi in zip(start, online, task.target.parameters(), strict=True):
        torch.testing.assert_close(xi, 0.99 * before + 0.01 * theta, rtol=1e-10, atol=1e-12)


def test_a_queue_longer_than_the_data_set_is_refused(hundred):
    with pytest.raises(UserError, match=r"methods.moco.queue: 4096 keys"):
        build("moco", hundred, double=False, methods__moco__queue=4096)


def test_computes_in_float32_under_autocast():
    q, k, queue = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        low = contrast(q, k, queue, 0.1)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(contrast(q, k, queue, 0.1).item(), rel=1e-6)
