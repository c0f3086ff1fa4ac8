"""ReSSL: its relation against plain loops, its temperatures, its two kinds of view and its queue."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.ressl import relation
from selfsup.task import Progress
from selfsup.views.image.recipe import crop_view
from tests.contract.runs import build, moved

START = Progress(0, 10, 5)


def slow(student, teacher, queue, tau_s, tau_t):
    """The paper's cross-entropy, image by image."""

    def distribution(z, tau):
        weights = [math.exp(z @ old / np.linalg.norm(z) / tau) for old in queue]
        return [w / sum(weights) for w in weights]

    return np.mean(
        [
            -sum(p * math.log(q) for p, q in zip(distribution(t, tau_t), distribution(s, tau_s), strict=True))
            for s, t in zip(student, teacher, strict=True)
        ]
    )


@pytest.fixture
def built(hundred):
    task, split, params = build("ressl", hundred, double=True)
    batch = split.gather(torch.arange(12))
    return task.train(), task.views(batch, Draw(0, 0, batch["id"])), batch, params


def test_equals_the_paper(built):
    task, views, _, _ = built
    moved(task.target)
    with torch.no_grad():
        q = task.projector(task.backbone(views[0])["pooled"]).numpy()
        k = task.target[1](task.target[0](views[1])["pooled"]).numpy()
    found = task(views, START).loss.item()
    assert found == pytest.approx(slow(q, k, task.queue.keys.numpy(), 0.1, 0.07), rel=1e-9)


def test_a_student_that_matches_pays_the_teachers_entropy():
    teacher = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = teacher.softmax(1)
    entropy = -(p * p.log()).sum(1).mean().item()
    assert relation(teacher, teacher).item() == pytest.approx(entropy, rel=1e-12)
    assert relation(teacher / 2, teacher).item() > entropy


@pytest.mark.parametrize("teacher", [0.1, 0.2])
def test_a_teacher_that_is_no_sharper_is_refused_in_one_line(hundred, teacher):
    with pytest.raises(UserError, match=r"methods.ressl.teacher_temperature: .* not below .* lower it$"):
        build("ressl", hundred, double=False, methods__ressl__teacher_temperature=teacher)


def test_a_queue_longer_than_the_data_set_is_refused(hundred):
    with pytest.raises(UserError, match=r"methods.ressl.queue: 4096 keys"):
        build("ressl", hundred, double=False, methods__ressl__queue=4096)


def test_the_teacher_sees_crops_and_the_student_contrastive_views(built):
    _, (strong, weak), batch, params = built
    draw = Draw(0, 0, batch["id"])
    size = params.data.of("image").image_size
    torch.testing.assert_close(
        weak, crop_view(batch, draw.fork("weak"), params.views, size).double(), rtol=0, atol=1e-6
    )
    assert not torch.allclose(strong, crop_view(batch, draw.fork("strong"), params.views, size).double(), atol=1e-2)


def test_the_teacher_gets_no_gradient_and_fills_the_queue(built):
    task, views, _, _ = built
    z = task.embed(views, START)
    leaves = {name: x.detach().requires_grad_() for name, x in z.items()}
    task.loss(leaves, START).loss.backward()
    assert leaves["q"].grad.abs().sum() > 0 and leaves["k"].grad is None
    before, start = task.queue.keys.clone(), [p.detach().clone() for p in task.target.parameters()]
    with torch.no_grad():
        for p in task.backbone.parameters():
            p += 1
    task.after_step(task.loss(z, START).carried(), START)
    assert torch.equal(task.queue.keys[:-12], before[12:])
    keys = z["k"]
    torch.testing.assert_close(task.queue.keys[-12:], keys / keys.norm(dim=1, keepdim=True), rtol=1e-12, atol=0)
    moved = [
        torch.allclose(xi, old + 0.01, atol=1e-12) for old, xi in zip(start, task.target.parameters(), strict=True)
    ]
    assert sum(moved) == len(list(task.backbone.parameters()))
