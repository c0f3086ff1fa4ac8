"""RotNet: exact turns, the right labels, chance level."""

import math

import pytest
import torch
import torch.nn.functional as F

from selfsup.draw import Draw
from selfsup.task import Progress
from tests.contract.runs import build

BLOCK = {"backbone": "conv", "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}}


@pytest.mark.parametrize("rotations", [2, 4])
def test_views_are_exact_turns_of_one_crop(shards, rotations):
    task, split, _ = build("rotation", shards, double=False, methods__rotation=BLOCK | {"rotations": rotations})
    batch = split.gather(torch.arange(5))
    views = task.views(batch, Draw(0, 0, batch["id"])).view(rotations, 5, 3, task.size, task.size)
    for k in range(rotations):
        assert torch.equal(views[k], views[0].rot90(k * 4 // rotations, (2, 3)))
        assert k == 0 or not torch.equal(views[k], views[0])


@pytest.mark.parametrize("rotations", [2, 4, 8])
def test_untrained_weights_are_at_chance(shards, rotations):
    task, split, _ = build("rotation", shards, double=False, methods__rotation=BLOCK | {"rotations": rotations})
    batch = split.gather(torch.arange(256))
    with torch.no_grad():
        output = task(task.views(batch, Draw(0, 0, batch["id"])), Progress(0, 10, 5))
    assert output.loss.item() == pytest.approx(math.log(rotations), abs=0.2)
    assert output.logs["accuracy"].item() == pytest.approx(1 / rotations, abs=0.12)


def test_loss_is_the_cross_entropy_of_the_number_of_turns(shards):
    task, split, _ = build("rotation", shards, double=True)
    batch = split.gather(torch.arange(6))
    views = task.views(batch, Draw(0, 0, batch["id"]))
    expected = 0.0
    with torch.no_grad():
        p = F.softmax(task.classifier(task.backbone(views)["pooled"]), 1)
    for k in range(4):
        for i in range(6):
            expected -= math.log(p[k * 6 + i, k]) / 24
    assert task(views, Progress(0, 10, 5)).loss.item() == pytest.approx(expected, rel=1e-10)
