"""DeepCluster-v2 and SeLa-v2: the bank, the assignment of the whole set, and the loss."""

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.nn.contrastive import unit
from selfsup.task import Progress
from tests.contract.runs import build

BOTH = ["deepcluster_v2", "sela_v2"]


def built(method, shards, n=10, first=5, **overrides):
    task, split, _ = build(method, shards, double=True, **overrides)
    ids = torch.arange(first, first + n)
    return task.train(), task.views(split.gather(ids), Draw(0, 0, ids))


def some(task, seed=0):
    """What a pass over the data may give."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(task.labels.shape[1], task.backbone.width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("method", BOTH)
def test_equals_the_paper(hundred, method):
    task, views = built(method, hundred)
    task.start_epoch(Progress(0, 10, 5), lambda: some(task))
    output = task(views, Progress(0, 10, 5))
    found = output.loss.item()
    used = np.mean([len(set(own.tolist())) / 12 for own in task.labels])
    assert output.logs["clusters_used"].item() == pytest.approx(used)
    *crops, ids = views
    assert len(crops) == 6
    with torch.no_grad():  # the batch norms' statistics are the batch's
        h = [task.backbone(torch.cat(group))["pooled"] for group in (crops[:2], crops[2:])]
        z = task.projector(torch.cat(h)).view(6, len(ids), -1).numpy()
    z = z / np.linalg.norm(z, axis=2, keepdims=True)
    scores = np.einsum("vid,hkd->ivhk", z, task.prototypes.detach().numpy())
    terms = []
    for head in range(3):
        for v in range(6):
            for i, number in enumerate(ids.tolist()):
                e = np.exp(scores[i, v, head] / 0.1)
                terms.append(-np.log(e[task.labels[head, number]] / e.sum()))
    assert found == pytest.approx(np.mean(terms), rel=1e-9)


@pytest.mark.parametrize("method", BOTH)
def test_the_bank_has_the_last_projections_of_the_global_views_by_image(hundred, method):
    task, views = built(method, hundred)
    before = task.bank.clone()
    output = task(views, Progress(0, 10, 5))
    with torch.no_grad():
        z = task.embed(views, Progress(0, 10, 5))["z"]
    torch.testing.assert_close(z.norm(dim=2), torch.ones(10, 2, dtype=torch.float64))
    assert not output.carried()["z"].requires_grad
    task.after_step(output.carried(), Progress(1, 10, 5))
    torch.testing.assert_close(task.bank[0, 5:15], z[:, 0])
    torch.testing.assert_close(task.bank[1, 5:15], z[:, 1])
    assert torch.equal(task.bank[:, :5], before[:, :5]) and torch.equal(task.bank[:, 15:], before[:, 15:])


@pytest.mark.parametrize("method", BOTH)
def test_the_first_epoch_looks_at_the_data_and_later_ones_at_the_bank_of_either_view(hundred, method):
    task, _ = built(method, hundred)
    calls = []
    task.start_epoch(Progress(0, 10, 5), lambda: calls.append(1) or some(task))
    torch.testing.assert_close(task.bank[0], task.bank[1])
    torch.testing.assert_close(task.bank.norm(dim=2), torch.ones(task.bank.shape[:2], dtype=torch.float64))
    task.bank.copy_(unit(torch.randn(task.bank.shape, dtype=torch.float64)))
    seen, real = [], task.assign
    task.assign = lambda z, head, epoch: seen.append((z.clone(), head, epoch)) or real(z, head, epoch)
    task.start_epoch(Progress(5, 10, 5), lambda: calls.append(1) or some(task))
    assert calls == [1]
    assert [(head, epoch) for _, head, epoch in seen] == [(0, 1), (1, 1), (2, 1)]
    for z, head, _ in seen:
        assert torch.equal(z, task.bank[head % 2])
        assert torch.equal(real(z, head, 1), task.labels[head])


def test_centroids_are_the_prototypes_and_no_cluster_is_empty(hundred):
    task, views = built("deepcluster_v2", hundred)
    task.start_epoch(Progress(0, 10, 5), lambda: some(task))
    assert "prototypes" not in dict(task.named_parameters())
    for head in range(3):
        labels = task.labels[head]
        assert labels.bincount(minlength=12).min() > 0
        means = torch.stack([task.bank[head % 2][labels == k].mean(0) for k in range(12)])
        torch.testing.assert_close(task.prototypes[head], unit(means))
    assert not torch.equal(task.labels[0], task.labels[2])  # other first centroids
    task(views, Progress(0, 10, 5)).loss.backward()
    assert task.projector[0].weight.grad is not None


def test_the_assignment_of_the_whole_set_is_balanced(hundred):
    task, _ = built("sela_v2", hundred, methods__sela_v2__prototypes=5)
    torch.manual_seed(0)
    z = unit(torch.randn(len(task.labels[0]), task.width, dtype=torch.float64) + 2 * task.prototypes[1, 0].detach())
    nearest = (z @ task.prototypes[1].T).argmax(1).bincount(minlength=5)
    balanced = task.assign(z, 1, 0).bincount(minlength=5)
    assert torch.equal(task.assign(task.prototypes[1].detach(), 1, 0), torch.arange(5))  # by the head's own prototypes
    share = len(z) / 5
    assert nearest.max() > 2 * share
    assert balanced.max() < 1.6 * share and balanced.min() > 0.4 * share


def test_learnt_prototypes_get_a_gradient_and_are_of_length_1_after_each_step(hundred):
    task, views = built("sela_v2", hundred)
    output = task(views, Progress(0, 10, 5))
    output.loss.backward()
    assert task.prototypes.grad.abs().sum() > 0
    with torch.no_grad():
        task.prototypes.mul_(3)
    task.after_step(output.carried(), Progress(1, 10, 5))
    torch.testing.assert_close(task.prototypes.detach().norm(dim=2), torch.ones(3, 12, dtype=torch.float64))


@pytest.mark.parametrize("method", BOTH)
def test_more_clusters_than_images_are_refused(hundred, method):
    with pytest.raises(UserError, match=rf"methods\.{method}\.prototypes: 1000 clusters are more than the \d+"):
        build(method, hundred, double=False, **{f"methods__{method}__prototypes": 1000})
