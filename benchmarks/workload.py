"""What is trained in the benchmarks: images, networks, parameters; and lightly's components in its documented loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import nn

from selfsup.blocks import Shared
from selfsup.config import parse
from selfsup.data.loader import Split
from selfsup.params import Params
from selfsup.training.build import build_task, method_params

SGD = {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 5e-4}
VIT = {"patch_size": 4, "embed_dim": 96, "depth": 3, "num_heads": 4, "class_token": False, "fc_norm": False,
       "global_pool": "avg"}  # fmt: skip
NETWORKS = {
    **{f"ResNet-9 w{w}": {"name": "resnet9", "small_stem": False, "options": {"width": w}} for w in (8, 16, 64)},
    "ResNet-18": {"name": "resnet18", "small_stem": True, "options": {}},
    "ResNet-50": {"name": "resnet50", "small_stem": True, "options": {}},
    "ViT w96 d3": {"name": "vit_tiny_patch16_224", "small_stem": False, "options": VIT},
}
TAU = 0.2  # of SimCLR


def image_folder(path: Path, size: int) -> dict[str, Any]:
    return {"source": "image_folder", "path": str(path), "image_size": size}


def make_images(folder: Path, count: int, size: int, suffix: str = "jpg") -> Path:
    """Smooth random images in two class folders: decoding and augmenting cost what they cost for photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 2}" / f"{i:06d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def parameters(data: dict, method: str = "simclr", network: dict = NETWORKS["ResNet-9 w8"], **pretrain: Any) -> Params:
    """`params.yaml` with this `data`, colour views as at 32 px and plain SGD; decoded images are kept in memory."""
    values = YAML(typ="safe", pure=True).load(common.ROOT / "params.yaml")
    values["method"] = method
    values["methods"][method] |= {"optimizer": SGD, "backbone": "conv"}
    shared = {name: value for name, value in data.items() if name in Shared.model_fields}
    values["data"] |= {"cache": "memory", "test": 0.01, "validation": 0.01} | shared
    values["data"]["image"] |= {name: value for name, value in data.items() if name not in shared}
    values["backbones"]["conv"] = network
    values["views"] |= {"crop_scale": [0.2, 1.0], "flip": 0.5, "grey": 0.2, "blur": [0.0, 0.0]}
    values["views"]["jitter"] |= {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    values["pretrain"] |= {"warmup_epochs": 0.0, "knn_every": 0} | pretrain
    return parse(Params, values)


class Lightly:
    """lightly's data set, transform, heads and losses in the loops of its SimCLR and BYOL examples."""

    def __init__(self, params: Params, split: Split, images: Path, workers: int, steps: int, device: str = "cpu"):
        from lightly.data import LightlyDataset

        self.params, self.steps, self.device, self.done = params, steps, torch.device(device), 0
        block = method_params(params, params.method)
        task = build_task(params, params.method, block, split)  # the same network with the same weights
        self.network = nn.ModuleDict({"backbone": task.backbone, **self._heads(task.backbone.width)})
        self.network.to(self.device, memory_format=torch.channels_last)
        if params.method == "byol":
            from lightly.models.utils import deactivate_requires_grad

            self.target = copy.deepcopy(nn.ModuleList([self.network["backbone"], self.network["projector"]]))
            deactivate_requires_grad(self.target)
            if params.pretrain.compile:
                self.target[0].compile()
        if params.pretrain.compile:
            self.network["backbone"].compile()
        recipe = method_params(params, params.method).optimizer
        self.rate = recipe.lr * params.pretrain.batch_size / 256
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), self.rate, recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.loader = torch.utils.data.DataLoader(
            LightlyDataset(str(images), transform=self._transform()),
            batch_size=params.pretrain.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
        )

    def _heads(self, width: int) -> dict[str, nn.Module]:
        from lightly.models import modules

        chosen: Any = method_params(self.params, self.params.method)
        g = chosen.projector
        if self.params.method == "simclr":
            return {"projector": modules.SimCLRProjectionHead(width, g.hidden, g.out)}
        q = chosen.predictor
        return {
            "projector": modules.BYOLProjectionHead(width, g.hidden, g.out),
            "predictor": modules.BYOLPredictionHead(g.out, q.hidden, q.out),
        }

    def _transform(self) -> Callable:
        from lightly import transforms

        views, size = self.params.views, self.params.data.of("image").image_size
        jitter = views.jitter
        both = {
            "input_size": size, "min_scale": views.crop_scale[0], "hf_prob": views.flip, "gaussian_blur": 0.0,
            "random_gray_scale": views.grey, "cj_prob": jitter.p, "cj_strength": 1.0, "cj_bright": jitter.brightness,
            "cj_contrast": jitter.contrast, "cj_sat": jitter.saturation, "cj_hue": jitter.hue,
            "normalize": None,  # the backbone does
        }  # fmt: skip
        if self.params.method == "simclr":
            return transforms.SimCLRTransform(**both)
        return transforms.BYOLTransform(
            transforms.BYOLView1Transform(**both, solarization_prob=0.0),
            transforms.BYOLView2Transform(**both, solarization_prob=0.0),
        )

    def batches(self) -> Iterator:
        while True:
            yield from self.loader

    def step(self, batch: Any) -> torch.Tensor:
        from lightly.utils.scheduler import cosine_schedule

        x0, x1 = (x.to(self.device, non_blocking=True, memory_format=torch.channels_last) for x in batch[0])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.pretrain.precision == "bf16"):
            loss = self._simclr(x0, x1) if self.params.method == "simclr" else self._byol(x0, x1)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_schedule(self.done, self.steps, self.rate, 0.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return loss

    def _simclr(self, x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
        from lightly.loss import NTXentLoss

        z0, z1 = (self.network["projector"](self.network["backbone"](x)["pooled"]) for x in (x0, x1))
        return NTXentLoss(temperature=TAU)(z0, z1)

    def _byol(self, x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        network, (backbone, projector) = self.network, self.target
        m = cosine_schedule(self.done, self.steps, 0.99, 1.0)
        update_momentum(network["backbone"], backbone, m=m)
        update_momentum(network["projector"], projector, m=m)
        p0, p1 = (network["predictor"](network["projector"](network["backbone"](x)["pooled"])) for x in (x0, x1))
        with torch.no_grad():
            z0, z1 = (projector(backbone(x)["pooled"]) for x in (x0, x1))
        criterion = NegativeCosineSimilarity()
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))
