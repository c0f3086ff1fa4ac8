"""Images/s of a whole training step: ours from shards, lightly's components in its documented loop, the bare network.

    uv pip install -e ".[bench]"
    python benchmarks/step.py                       # writes benchmarks/results/step-simclr.md
    python benchmarks/step.py --method byol
    python benchmarks/step.py --cases ResNet-18@32 ResNet-50@96 --precision bf16 --compile --workers 16    # on a GPU

All three do the same work on the same JPEG files: the same network, batch, views, optimiser, memory format, precision
and threads. They take turns in one process; ratios are of the same round. Ours is the project's own loop with its
curves, monitors and checkpoints; lightly's DataLoader has a worker a core (`--workers`) that live through all epochs.
The bare network does forward, loss, backward, optimiser and moving average on constant views: no data, no monitors.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import common
import torch
from workload import NETWORKS, Lightly, image_folder, make_images, parameters

from selfsup.data.loader import open_splits
from selfsup.data.shards import write
from selfsup.params import Params
from selfsup.processes.accelerator import make_accelerator
from selfsup.task import Progress
from selfsup.training.build import build_task, method_params
from selfsup.training.loop import Plan, train
from selfsup.training.optimizers import build_optimizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Stop(Exception):
    """Enough steps were timed."""


class Clock:
    """Times the steps between its ticks: none of the warm-up, then until both are enough, seconds and steps."""

    def __init__(self, seconds: float, warmup: int, steps: int = 3):
        self.seconds, self.warmup, self.steps = seconds, warmup, steps
        self.ticks, self.start, self.step = 0, 0.0, 0.0

    def tick(self) -> None:
        """The end of a step. Raises `Stop`."""
        self.ticks += 1
        timed = self.ticks - self.warmup
        if timed == 0 and DEVICE == "cuda":
            torch.cuda.synchronize()
        if timed == 0:
            self.start = time.perf_counter()
        if timed >= self.steps and time.perf_counter() - self.start >= self.seconds:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            self.step = (time.perf_counter() - self.start) / timed
            raise Stop


def ours(params: Params, folder: Path, clock: Clock, log: Callable = lambda row, step: None) -> None:
    """The project's own loop on shards in `folder`, images decoded already, as in every epoch but the first."""
    split = open_splits(params.data, folder / "shards", verified=True)["train"]
    split.gather([0])
    task = build_task(params, params.method, method_params(params, params.method), split)
    after = task.after_step

    def timed(carry, progress) -> None:
        after(carry, progress)
        clock.tick()

    task.after_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as resume:
        plan = Plan(0, params.pretrain, method_params(params, params.method).optimizer, Path(resume), log=log)
        train(task, split, plan, make_accelerator(params.pretrain.precision))


def bare(params: Params, folder: Path, clock: Clock) -> None:
    """Forward, loss, backward, optimiser and moving average on constant views."""
    split = open_splits(params.data, folder / "shards", verified=True)["train"]
    block = method_params(params, params.method)
    task = build_task(params, params.method, block, split).to(DEVICE, memory_format=torch.channels_last)
    if params.pretrain.compile:
        task.backbone.compile()
    optimizer = build_optimizer(task.groups(), block.optimizer, lambda p: 0.1)
    size, batch = params.data.of("image").image_size, params.pretrain.batch_size
    views = tuple(torch.rand(2, batch, 3, size, size, device=DEVICE))
    while True:
        progress = Progress(clock.ticks, 1000, 1000)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=params.pretrain.precision == "bf16"):
            output = task(views, progress)
        output.loss.backward()
        optimizer.step()
        task.after_step(output.carried(), progress)
        optimizer.zero_grad()
        clock.tick()


def lightly(params: Params, folder: Path, workers: int, clock: Clock) -> None:
    split = open_splits(params.data, folder / "shards", verified=True)["train"]
    loop = Lightly(params, split, folder / "images", workers, steps=100_000, device=DEVICE)
    for batch in loop.batches():
        loop.step(batch)
        clock.tick()


def speed(arm: Callable, batch: int, seconds: float, warmup: int, *values: object) -> float:
    """Images/s of `arm`, which steps until the clock stops it."""
    clock = Clock(seconds, warmup)
    with contextlib.suppress(Stop):
        arm(*values, clock)
    return batch / clock.step


def case(text: str) -> tuple[str, int]:
    """`NETWORK@PIXELS` -> both."""
    name, _, size = text.partition("@")
    if name not in NETWORKS or not size.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: write NETWORK@PIXELS with one of {', '.join(NETWORKS)}")
    return name, int(size)


def rows(args, scratch: Path) -> Iterator[list]:
    for name, size in args.cases:
        folder, heavy = scratch / str(size), DEVICE == "cpu" and name in ("ResNet-18", "ResNet-50")
        batch = args.small_batch if heavy else args.batch
        settings = {"batch_size": batch, "epochs": 1000, "precision": args.precision, "compile": args.compile}
        params = parameters(image_folder(folder / "images", size), args.method, NETWORKS[name], **settings)
        if not folder.exists():
            make_images(folder / "images", args.images, size)
            write(params.data.of("image"), 0, folder / "shards")
        timing = (batch, args.seconds, args.warmup, params, folder)
        arms = {
            "ours": partial(speed, ours, *timing),
            "lightly": partial(speed, lightly, *timing, args.workers),
            "bare": partial(speed, bare, *timing),
        }
        speeds = common.alternate(arms, args.rounds, f"{name} {size} px")
        over = [common.ratios(speeds["ours"], speeds[other]) for other in ("lightly", "bare")]
        yield [name, size, batch, *map(common.spread, speeds.values()), *(common.spread(each, 2) for each in over)]


def main() -> None:
    parser = common.arguments(__doc__, "step-<method>.md")
    parser.add_argument("--method", choices=("simclr", "byol"), default="simclr")
    small = ["ResNet-9 w8@16", "ResNet-9 w16@16", "ResNet-9 w8@32", "ResNet-9 w16@32", "ViT w96 d3@32", "ResNet-18@32"]
    parser.add_argument("--cases", nargs="+", type=case, default=list(map(case, small)), help="NETWORK@PIXELS ...")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--small-batch", type=int, default=32, help="of ResNet-18 and -50 without a GPU")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=3, help="timed a round, at least three steps")
    parser.add_argument("--warmup", type=int, default=4, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=common.cores(), help="of lightly's DataLoader")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = list(rows(args, Path(scratch)))
    text = (
        f"Images/s, median (minimum to maximum) of {args.rounds} rounds of at least {args.seconds:g} s and three "
        f"steps, after {args.warmup} steps of warm-up. Two views an image, {args.precision}"
        f"{', compiled' * args.compile}, channels_last, {torch.get_num_threads()} threads, {args.workers} workers for "
        "lightly."
    )
    head = ["network", "pixels", "batch", "ours", "lightly", "bare network", "ours / lightly", "ours / bare"]
    where = common.conditions("torch", "torchvision", "lightly", "timm")
    out = args.out or common.RESULTS / f"step-{args.method}.md"
    common.write(out, f"A whole {args.method} step", text, where, common.table(head, found))


if __name__ == "__main__":
    main()
