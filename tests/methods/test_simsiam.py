"""SimSiam's loss, its stop-gradient and the predictor's own learning rate."""

import numpy as np
import pytest
import torch

from selfsup.methods.simsiam import distance
from selfsup.task import Progress
from tests.contract.runs import build


def negative_cosine(p, z):
    return np.mean([-(x @ y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(p, z, strict=True)])


def outputs(task, views):
    with torch.no_grad():
        z = [task.projector(task.backbone(view)["pooled"]) for view in views]
        return z, [task.predictor(x) for x in z]


@pytest.fixture
def built(hundred):
    from selfsup.draw import Draw

    task, split, params = build("simsiam", hundred, double=True)
    batch = split.gather(torch.arange(12))
    return task.train(), task.views(batch, Draw(0, 0, batch["id"])), params


def test_equals_the_paper(built):
    task, views, _ = built
    (z1, z2), (p1, p2) = outputs(task, views)
    expected = negative_cosine(p1.numpy(), z2.numpy()) / 2 + negative_cosine(p2.numpy(), z1.numpy()) / 2
    assert task(views, Progress(0, 10, 5)).loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_target_branch_gets_no_gradient(built):
    """The gradient is that of a loss whose targets are constants; with `stop_gradient: false` it is not."""
    task, views, _ = built
    (z1, z2), _ = outputs(task, views)
    p = [task.predictor(task.projector(task.backbone(view)["pooled"])) for view in views]
    weight = task.projector[0].weight
    (constant,) = torch.autograd.grad(distance(p[0], z2) / 2 + distance(p[1], z1) / 2, weight)
    for stop, same in ((True, True), (False, False)):
        task.stop_gradient = stop
        (found,) = torch.autograd.grad(task(views, Progress(0, 10, 5)).loss, weight)
        assert torch.allclose(found, constant, rtol=1e-8, atol=1e-12) == same


def test_the_predictors_learning_rate_does_not_fall(built):
    task, _, params = built
    own = {id(p) for p in task.predictor.parameters()}
    peak = params.methods["simsiam"]["optimizer"]["lr"] * params.pretrain.batch_size / 256
    seen = set()
    for group in task.groups():
        inside = {id(p) for p in group.params} & own
        assert not inside or inside == {id(p) for p in group.params}
        if inside:
            assert group.lr is not None and {group.lr(Progress(step, 10, 5)) for step in (0, 5, 9)} == {peak}
        else:
            assert group.lr is None
        seen |= {id(p) for p in group.params}
    assert seen == {id(p) for p in task.parameters() if p.requires_grad}
