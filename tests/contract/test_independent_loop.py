"""The whole loop beside an independent one: fifteen steps of `plain` end with the same weights, number by number.

What both have in common are the initial weights and the views. That these are what they should be is shown here too
(each image once an epoch, other views each time) and in tests/views/test_measured.py, on their pixels.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup.draw import Draw
from selfsup.params import Params
from selfsup.processes.accelerator import make_accelerator
from selfsup.task import Batch, Task
from selfsup.training import session
from selfsup.training.build import build_task, method_params
from tests.contract.plain import methods, networks, trainer
from tests.contract.runs import doubled, state
from tests.helpers import small

BATCH, EPOCHS, WARMUP = 8, 5, 2  # three steps an epoch, so that a warm-up in epochs is not one in steps
TOLERANCE = 1e-7  # float64; rounding alone is 1e-13, and 1e-9 where Adam scales gradients that should be 0
SGD = {"name": "sgd", "lr": 1.0, "momentum": 0.9, "weight_decay": 0.01}
LARS = {"name": "lars", "lr": 2.0, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1}
ADAMW = {"name": "adamw", "lr": 0.1, "betas": [0.8, 0.95], "weight_decay": 0.5}
CROPS = {"count": 2, "size": 8, "scale": [0.1, 0.3]}
SETTINGS: dict[str, dict[str, Any]] = {  # `clip` is amid the norms of the gradient: some steps are clipped
    "simclr": {"clip": 10, "optimizer": LARS, "temperature": 0.2},
    "byol": {"clip": 10, "optimizer": LARS, "momentum": [0.6, 1.0]},
    "simsiam": {"clip": 3, "optimizer": SGD},
    "moco": {"clip": 30, "optimizer": SGD, "temperature": 0.2, "queue": 20, "momentum": [0.6, 0.9]},
    "moco_v3": {"clip": 30, "optimizer": ADAMW, "temperature": 0.2, "momentum": [0.6, 1.0]},
    "swav": {"clip": 12, "optimizer": LARS, "temperature": 0.1, "eps": 0.05, "prototypes": 6, "frozen_epochs": 1,
             "queue": 20, "queue_epoch": 2, "crops": CROPS},
    "sela_v2": {"clip": 25, "optimizer": SGD, "temperature": 0.1, "eps": 0.05, "heads": 3, "prototypes": 4,
                "crops": CROPS},
    "dino": {"clip": 25, "optimizer": ADAMW, "temperature": 0.1, "teacher_temperature": 0.07,
             "teacher_temperature_start": 0.04, "teacher_warmup": 0.5, "momentum": [0.6, 1.0], "centre_momentum": 0.7,
             "outputs": 12, "frozen_epochs": 2, "decay_end": 2.0, "crops": CROPS},
    "mae": {"clip": 0.7, "optimizer": ADAMW, "mask_ratio": 0.7, "decoder": {"width": 16, "depth": 1, "heads": 2}},
    "rotation": {"clip": 2.5, "optimizer": SGD},
    "barlow_twins": {"clip": 20, "optimizer": LARS, "redundancy": 0.02, "scale": 0.1},
    "vicreg": {"clip": 60, "optimizer": LARS, "invariance": 25.0, "variance": 25.0, "covariance": 1.0},
    "supervised": {"clip": 3.8, "optimizer": SGD, "label_smoothing": 0.1},
}  # fmt: skip


class Pictures:
    """A split of images whose channels are of different brightness, so that normalising matters."""

    samples, classes, checksum, kind = networks.SAMPLES, ["a", "b", "c"], "of these pictures", "image"
    facts = SimpleNamespace(mean=list(networks.MEAN), std=list(networks.STD))
    data = SimpleNamespace(image_size=16, kind="image", noun="images")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(self.samples, 3, 6, 6, generator=generator)
        smooth = torch.nn.functional.interpolate(noise, 16, mode="bilinear")
        channels = torch.tensor([0.4, 0.9, 0.6]).view(3, 1, 1)
        self.images = (255 * smooth * channels).to(torch.uint8)
        self.labels = np.arange(self.samples) % 3

    def gather(self, ids: Tensor) -> Batch:
        return {"id": ids, "image": self.images[ids], "box": torch.full((len(ids), 2), 16),
                "label": torch.from_numpy(self.labels)[ids]}  # fmt: skip


def settings(method: str) -> Params:
    block = {f"methods__{method}__{name}": value for name, value in SETTINGS[method].items() if name != "clip"}
    heads = {"layers": 2, "hidden": networks.HEAD[0], "out": networks.HEAD[1]}
    tokens = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": True,
              "global_pool": "token", "fc_norm": False}  # fmt: skip
    for name, value in small().methods[method].items():
        if name in ("projector", "predictor"):
            block[f"methods__{method}__{name}"] = value | heads
    return small(**block, backbones__vit__options=tokens, pretrain__batch_size=BATCH, pretrain__epochs=EPOCHS,
                 pretrain__warmup_epochs=WARMUP, pretrain__clip_grad_norm=SETTINGS[method]["clip"], seed=3)  # fmt: skip


def images_of(views: Any) -> list[Tensor]:
    return [x for x in (views if isinstance(views, tuple) else (views,)) if x.ndim == 4]


class Run:
    """The package's run: `start` and `end` are the states around it, `steps` the batch and the views of each step."""

    def __init__(self, method: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.steps: list[tuple[Batch, Any]] = []
        self.params, self.start = settings(method), {}
        monkeypatch.setattr(session, "build_task", self.build)
        splits: Any = dict.fromkeys(("train", "validation", "test"), Pictures())
        block, accelerator = method_params(self.params, method), make_accelerator("fp32")
        task, _ = session.run(self.params, method, block, splits, folder, method, lambda row, step: None, accelerator)
        self.end = state(task)

    def build(self, *arguments: Any) -> Task:
        task = build_task(*arguments).double()
        self.start, self.views, task.views = state(task), task.views, self.record
        return task

    def record(self, batch: Batch, draw: Draw) -> Any:
        made = doubled(self.views(batch, draw))
        self.steps.append((batch, made))
        return made

    def again(self, batch: Batch, epoch: int) -> Any:
        return doubled(self.views(batch, Draw(self.params.seed, epoch, batch["id"])))


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each tensor, as a share of its largest value if that is more than 1."""
    assert a.keys() == b.keys()
    pairs = {name: (a[name].double(), b[name].double()) for name in a}
    return {name: ((x - y).abs().max() / y.abs().max().clamp(min=1)).item() for name, (x, y) in pairs.items()}


@pytest.mark.parametrize("method", SETTINGS)
def test_the_loop_equals_a_plain_one(method, tmp_path, monkeypatch):
    run, clip = Run(method, tmp_path, monkeypatch), SETTINGS[method]["clip"]
    order = [batch["id"].tolist() for batch, _ in run.steps]
    assert len(order) == 15
    epochs = [[i for ids in order[start : start + 3] for i in ids] for start in range(0, 15, 3)]
    assert all(len(set(ids)) == 24 for ids in epochs), "an image comes once an epoch"
    assert all(a != b for a, b in pairwise(epochs)), "in another order"
    for step, (batch, views) in enumerate(run.steps):
        for found, expected in zip(images_of(views), images_of(run.again(batch, step // 3)), strict=True):
            assert torch.equal(found, expected), "views are a function of seed, epoch and image"

    net = methods.METHODS[method](SETTINGS[method]).double()
    net.load_state_dict(run.start)
    rule = SETTINGS[method]["optimizer"]
    images, views = Pictures().images.double() / 255, [views for _, views in run.steps]
    peak = rule["lr"] * BATCH / 256
    norms = trainer.train(net, images, views, rule, per_epoch=3, warmup=3 * WARMUP, peak=peak, clip=clip)
    differences = apart(run.end, state(net))
    worst = max(differences, key=lambda name: differences[name])
    print(f"{method}: {differences[worst]:.1e} ({worst}); gradients from {min(norms):.2g} to {max(norms):.2g}")
    assert differences[worst] < TOLERANCE, worst
    assert min(norms) < clip < max(norms), "some gradients are clipped and others not"
    moved = apart(run.end, run.start)
    weights = [name for name in trainer.trained(net) if name.endswith(("0.weight", "qkv.weight"))]
    assert len(weights) > 1 and all(moved[name] > 1e-3 for name in weights), "a run that goes somewhere"
