"""The package as a library: views, losses and whole methods in a loop of one's own, without pipeline and files."""

import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from selfsup import methods
from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.simclr import nt_xent
from selfsup.nets.image import Backbone, ResNet9
from selfsup.params import JitterParams, ViewsParams
from selfsup.task import Facts, Progress
from selfsup.views.image.recipe import two_views

RECIPE = ViewsParams(
    crop_scale=[0.3, 1.0], crop_ratio=[0.75, 1.33], flip=0.5,
    jitter=JitterParams(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1), colour="exact",
    grey=0.2, blur=[0.0, 0.0], blur_sigma=[0.1, 2.0], solarize=[0.0, 0.0],
)  # fmt: skip
HEAD = {"layers": 2, "hidden": 64, "out": 32}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no params.yaml, no shards
    torch.manual_seed(0)


def smooth_images() -> torch.Tensor:
    """64 pictures that differ, uint8 [64 3 16 16]."""
    coarse = torch.randint(0, 256, (64, 3, 4, 4), dtype=torch.uint8)
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


def falls(losses: list[float]) -> bool:
    return statistics.mean(losses[-3:]) < statistics.mean(losses[:3]) - 0.1


def test_a_method_by_hand():
    images = smooth_images()
    batch = {"image": images, "box": torch.full((64, 2), 16)}  # height and width of each picture
    backbone = Backbone(ResNet9(width=4), mean=[0.5] * 3, std=[0.25] * 3)
    projector = nn.Sequential(nn.Linear(backbone.width, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.SGD([*backbone.parameters(), *projector.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(10):
        a, b = two_views(batch, Draw(seed=0, epoch=epoch, ids=torch.arange(64)), RECIPE, size=16)
        z_a, z_b = projector(backbone(torch.cat([a, b]))["pooled"]).chunk(2)
        loss = nt_xent(z_a, z_b, tau=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert falls(losses), losses


KNOBS = {
    "simclr": {"temperature": 0.2, "projector": HEAD},
    "byol": {"momentum": [0.9, 1.0], "projector": HEAD, "predictor": HEAD},
}
MOCO = {"temperature": 0.2, "queue": 32, "momentum": [0.9, 0.99], "projector": HEAD}


def facts() -> Facts:
    def backbone() -> Backbone:
        return Backbone(ResNet9(width=4), mean=[0.5] * 3, std=[0.25] * 3)

    return Facts(samples=64, data=SimpleNamespace(image_size=16), batch_size=64, views=RECIPE, backbone=backbone)


@pytest.mark.parametrize("method", KNOBS)
def test_a_whole_method_from_a_plain_mapping(method):
    batch = {"id": torch.arange(64), "image": smooth_images(), "box": torch.full((64, 2), 16)}
    task = methods.build(method, KNOBS[method], facts())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(10):
        progress = Progress(step, steps=10, steps_per_epoch=1)
        output = task(task.views(batch, Draw(seed=0, epoch=step, ids=batch["id"])), progress)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        task.after_step(output.carried(), progress)
        losses.append(output.loss.item())
    assert falls(losses), losses


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("mocco", {}, "unknown 'mocco'; did you mean moco?"),
        ("moco", MOCO | {"queue": 100}, "methods.moco.queue: 100 keys are more than the 64 training samples"),
        ("moco", MOCO | {"tau": 1.0}, "knobs: methods.moco.tau: unknown parameter; remove it"),
        ("byol", KNOBS["byol"] | {"predictor": HEAD | {"out": 8}}, "methods.byol.predictor.out: 8 is not the width"),
        ("simclr", {"projector": HEAD}, "knobs: methods.simclr.temperature: missing parameter; add it"),
    ],
)
def test_wrong_knobs_are_refused_by_name(name, knobs, message):
    with pytest.raises(UserError) as error:
        methods.build(name, knobs, facts())
    assert message in str(error.value) and "\n" not in str(error.value)
