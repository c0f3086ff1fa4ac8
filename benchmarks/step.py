"""Images/s of a whole SimCLR step: ours from shards, lightly's components in its documented loop, the bare network.

    uv pip install -e .[bench]
    python benchmarks/step.py                     # writes benchmarks/results/step.md

All three do the same work on the same JPEG files: the same network, batch, views, optimiser, memory format and threads.
They take turns in one process, so that a machine that slows down slows all of them; what is reported is the median over
rounds and the ratio round by round. The bare network steps on one constant tensor: no data, no views, no monitors.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

from selfsup.data.shards import write
from selfsup.methods.simclr import nt_xent
from selfsup.params import Params
from selfsup.strict import parse
from selfsup.task import Task
from selfsup.training.build import build_task, method_params
from selfsup.training.loop import Plan, train
from selfsup.training.optimizers import build_optimizer
from selfsup.training.session import open_splits

FLIP, CROP, JITTER, GREY = 0.5, (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2
NETWORKS = {
    "ResNet-9 width 8": {"name": "resnet9", "small_stem": False, "options": {"width": 8}},
    "ResNet-9 width 16": {"name": "resnet9", "small_stem": False, "options": {"width": 16}},
    "ResNet-18": {"name": "resnet18", "small_stem": True, "options": {}},
}


def make_images(folder: Path, count: int, size: int) -> None:
    """Smooth random JPEGs in two class folders: decoding and augmenting cost what they cost for photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "images" / f"class{i % 2}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


def parameters(folder: Path, network: dict, size: int, batch: int, steps: int, count: int) -> Params:
    values = YAML(typ="safe", pure=True).load(common.ROOT / "params.yaml")
    values["method"] = "simclr"
    values["methods"]["simclr"]["optimizer"] = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    values["data"] |= {"source": "image_folder", "path": str(folder / "images"), "image_size": size, "cache": "memory"}
    values["backbones"]["conv"] = network
    brightness, contrast, saturation, hue = JITTER
    values["views"] |= {"crop_scale": list(CROP), "flip": FLIP, "grey": GREY, "blur": [0.0, 0.0]}
    values["views"]["jitter"] = {
        "p": 0.8, "brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue,
    }  # fmt: skip
    per_epoch = int(count * 0.72) // batch  # training images are 72 % of all
    epochs = -(-steps // max(per_epoch, 1))
    values["pretrain"] |= {"batch_size": batch, "epochs": epochs, "warmup_epochs": 0.0, "precision": "fp32"}
    values["pretrain"] |= {"log_every": 10, "knn_every": 0}
    return parse(Params, values)


class Stop(Exception):
    """Enough steps were timed."""


def ours(params: Params, folder: Path, steps: int, warmup: int) -> float:
    """Seconds a step of the project's own loop, monitors and checkpoints of an epoch included."""
    split = open_splits(params.data, folder / "shards", verified=True)["train"]
    split.gather([0])  # decode before the clock starts, as in every epoch but the first
    task = build_task(params, "simclr", "conv", split)
    times: list[float] = []
    after = task.after_step

    def timed(carry, progress) -> None:
        after(carry, progress)
        times.append(time.perf_counter())
        if len(times) > warmup + steps:
            raise Stop

    task.after_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as resume:
        plan = Plan(0, params.pretrain, method_params(params, "simclr").optimizer, Path(resume))
        with contextlib.suppress(Stop):
            train(task, split, params.data.image_size, plan)
    return (times[-1] - times[warmup]) / (len(times) - 1 - warmup)


def network_and_optimizer(params: Params, folder: Path) -> tuple[Task, torch.optim.Optimizer]:
    split = open_splits(params.data, folder / "shards", verified=True)["train"]
    task = build_task(params, "simclr", "conv", split).to(memory_format=torch.channels_last)
    return task, build_optimizer(task.groups(), method_params(params, "simclr").optimizer, lambda p: 0.1)


def bare(params: Params, folder: Path, steps: int, warmup: int) -> float:
    """Seconds a step of network, loss and optimiser on one constant batch of both views."""
    task, optimizer = network_and_optimizer(params, folder)
    size, batch = params.data.image_size, params.pretrain.batch_size
    x = torch.rand(2 * batch, 3, size, size).to(memory_format=torch.channels_last)

    def step(_: object) -> None:
        a, b = task.projector(task.backbone(x)["pooled"]).chunk(2)
        nt_xent(a, b, 0.2).backward()
        optimizer.step()
        optimizer.zero_grad()

    return clock(step, iter(int, 1), steps, warmup)


def lightly(params: Params, folder: Path, steps: int, warmup: int) -> float:
    """Seconds a step of lightly's data set, transform, head and loss in the loop of its SimCLR example."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    task, _ = network_and_optimizer(params, folder)
    head = method_params(params, "simclr").projector  # type: ignore[attr-defined]
    projector = SimCLRProjectionHead(task.backbone.width, head.hidden, head.out)
    optimizer = torch.optim.SGD([*task.backbone.parameters(), *projector.parameters()], lr=0.1, momentum=0.9)
    brightness, contrast, saturation, hue = JITTER
    transform = SimCLRTransform(
        input_size=params.data.image_size, cj_bright=brightness, cj_contrast=contrast, cj_sat=saturation, cj_hue=hue,
        cj_strength=1.0, min_scale=CROP[0], random_gray_scale=GREY, gaussian_blur=0.0, hf_prob=FLIP,
    )  # fmt: skip
    dataset = LightlyDataset(str(folder / "images"), transform=transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=params.pretrain.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=torch.get_num_threads(),
    )
    criterion = NTXentLoss(temperature=0.2)

    def batches() -> Iterator:
        while True:
            yield from loader

    def step(batch: object) -> None:
        (x0, x1), *_ = batch  # type: ignore[misc]
        x0, x1 = (x.to(memory_format=torch.channels_last) for x in (x0, x1))
        loss = criterion(projector(task.backbone(x0)["pooled"]), projector(task.backbone(x1)["pooled"]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return clock(step, batches(), steps, warmup)


def clock(step: Callable, batches: Iterator, steps: int, warmup: int) -> float:
    for _ in range(warmup):
        step(next(batches))
    start = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = common.arguments(__doc__, "step.md")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ResNet-9 width 8", "ResNet-9 width 16"])
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=15, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows, warmup = [], 5
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_images(folder, args.images, args.size)
        for network in args.networks:
            params = parameters(folder, NETWORKS[network], args.size, args.batch, args.steps + warmup + 2, args.images)
            if not (folder / "shards").exists():
                write(params.data, 0, folder / "shards")
            arms = {
                name: partial(lambda arm, params: args.batch / arm(params, folder, args.steps, warmup), arm, params)
                for name, arm in {"ours": ours, "lightly": lightly, "bare": bare}.items()
            }
            speeds = common.alternate(arms, args.rounds, network)
            times = [common.ratios(speeds["ours"], speeds[other]) for other in ("lightly", "bare")]
            rows.append([network, *map(common.spread, speeds.values()), *(common.spread(each, 2) for each in times)])
    text = (
        f"{args.size} px, batch {args.batch}, two views an image, {args.steps} steps a round after {warmup} of "
        f"warm-up, {args.rounds} rounds in turn; images/s, median (minimum to maximum)."
    )
    head = ["network", "ours, from shards", "lightly, documented loop", "bare network", "ours / lightly", "ours / bare"]
    versions = common.conditions("torch", "torchvision", "lightly", "timm")
    common.write(args.out, "A whole SimCLR step", text, versions, common.table(head, rows))


if __name__ == "__main__":
    main()
