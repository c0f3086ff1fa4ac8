"""PixPro's geometry, propagation and consistency."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.methods.pixel_contrast import centres, consistency, positives
from selfsup.task import Progress
from selfsup.views.image.recipe import two_places, two_views
from tests.contract.runs import build, moved
from tests.helpers import params

START = Progress(0, 10, 5)


def box(*numbers):
    return torch.tensor([numbers])


def flip(value):
    return torch.tensor([value])


def test_places_of_known_crops():
    spots, diagonal = centres(box(10, 20, 8, 16), flip(False), 2)
    assert spots[0].tolist() == [[12, 24], [12, 32], [16, 24], [16, 32]]
    assert diagonal.item() == pytest.approx(math.hypot(4, 8))
    flipped, _ = centres(box(10, 20, 8, 16), flip(True), 2)
    assert flipped[0].tolist() == [[12, 32], [12, 24], [16, 32], [16, 24]]


def test_positives_of_known_crops():
    whole = centres(box(0, 0, 8, 8), flip(False), 2)  # centres at 2 and 6, diagonal 4 sqrt 2
    mirrored = centres(box(0, 0, 8, 8), flip(True), 2)
    quarter = centres(box(0, 0, 4, 4), flip(False), 2)  # centres at 1 and 3
    away = centres(box(40, 40, 8, 8), flip(False), 2)
    eye = torch.eye(4, dtype=torch.bool)
    assert torch.equal(positives(whole, whole, 0.7)[0], eye)  # the next is 4 away, the limit 3.96
    assert torch.equal(positives(whole, mirrored, 0.7)[0], eye[[1, 0, 3, 2]])
    assert not positives(whole, away, 0.7).any()
    assert positives(whole, whole, 0.72)[0].sum() == 12  # the limit 4.07
    # of the larger crop: each place of the quarter is within 3.96 of (2, 2), none of (6, 6)'s is nearer than 4.24
    near = positives(whole, quarter, 0.7)[0]
    assert near[0].all() and not near[3].any()
    assert near[1].tolist() == [False, True, False, True]  # 3.16 away, more than the quarter's own limit of 1.98
    assert torch.equal(positives(quarter, whole, 0.7)[0], near.T)


@pytest.mark.parametrize("flipped", [0.0, 1.0])
def test_the_places_are_those_of_the_views(flipped):
    """Images that say where each of their pixels is."""
    size, n = 64, 12
    line = torch.arange(size) + 0.5
    image = torch.stack([line[:, None].expand(size, size), line.expand(size, size), torch.zeros(size, size)]) / size
    batch = {"image": image.expand(n, -1, -1, -1).clone(), "box": torch.full((n, 2), size)}
    jitter = {"p": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    plain = params(views__flip=flipped, views__grey=0.0, views__blur=[0.0, 0.0], views__jitter=jitter).views
    draw = Draw(0, 0, torch.arange(n))
    made = two_views(batch, draw, plain, 16)
    for view, (crop, flips) in zip(made, two_places(batch, draw, plain), strict=True):
        assert flips.all() == bool(flipped)
        spots, _ = centres(crop, flips, 4)
        seen = torch.nn.functional.avg_pool2d(view[:, :2], 4).flatten(2).mT * size  # (y, x) of each place
        torch.testing.assert_close(seen.double(), spots, atol=0.75, rtol=0)
    assert not torch.equal(two_places(batch, draw, plain)[0][0], two_places(batch, draw, plain)[1][0])


def test_consistency_equals_a_loop():
    torch.manual_seed(0)
    y, x = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    positive = torch.rand(3, 4, 4) < 0.4
    positive[1] = False
    total = 0.0
    for n in range(3):
        cosines = [
            (y[n, i] @ x[n, j]).item() / (y[n, i].norm() * x[n, j].norm()).item()
            for i in range(4)
            for j in range(4)
            if positive[n, i, j]
        ]
        total -= float(np.mean(cosines)) if cosines else 0
    assert consistency(y, x, positive).item() == pytest.approx(total / 3, rel=1e-9)


def test_propagation_equals_a_loop(hundred):
    task, _, _ = build("pixel_contrast", hundred, double=True, methods__pixel_contrast__sharpness=2.0)
    torch.manual_seed(0)
    x = torch.randn(2, 4, task.width, dtype=torch.float64)
    found = task.propagate(x)
    for n in range(2):
        for i in range(4):
            expected = torch.zeros(task.width, dtype=torch.float64)
            for j in range(4):
                cosine = x[n, i] @ x[n, j] / (x[n, i].norm() * x[n, j].norm())
                expected += max(cosine.item(), 0) ** 2 * task.transform(x[n, j])
            torch.testing.assert_close(found[n, i], expected)


@pytest.mark.parametrize("backbone", ["conv", "vit"])
def test_the_loss_is_the_papers_and_the_target_gets_no_gradient(hundred, backbone):
    task, split, _ = build("pixel_contrast", hundred, double=True, methods__pixel_contrast__backbone=backbone)
    ids = torch.arange(12)
    a, b, *numbers = task.train().views(split.gather(ids), Draw(0, 0, ids))
    moved(task.target)
    output = task((a, b, *numbers), START)
    x = [task.project(task.backbone, task.projector, view) for view in (a, b)]
    t = [task.project(*task.target, view) for view in (a, b)]
    side = math.isqrt(x[0].shape[1])
    match = positives(centres(*numbers[:2], side), centres(*numbers[2:], side), task.params.threshold)
    assert output.logs["positives"].item() == pytest.approx(match.sum().item() / 12)
    y = [task.propagate(z) for z in x]
    expected = consistency(y[0], t[1], match) + consistency(y[1], t[0], match.mT)
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=1e-12)
    output.loss.backward()
    assert all(p.grad is None for p in task.target.parameters())
    assert task.transform.weight.grad.abs().sum() > 0
