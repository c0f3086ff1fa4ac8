"""Seconds until SimCLR reaches 95 % of its final kNN accuracy: ours against lightly's loop with the same recipe.

    python benchmarks/time_to_accuracy.py --data /path/of/fashion-mnist      # its four idx files; without, a download
                                                       # writes benchmarks/results/time-to-accuracy.md

Both train the same network from the same weights on the same 9,000 images, with the same views, batch, SGD and cosine.
The clock of ours starts before its images are decoded, lightly's before its workers start. The accuracy is read on
validation images by one function, outside the clock. The runs follow each other, a pair for each of the `--seeds`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import common
import torch
from torch import nn
from workload import NETWORKS, Lightly, parameters

from selfsup.data.loader import Split, open_splits
from selfsup.data.shards import write
from selfsup.evaluation.neighbours import knn_accuracy
from selfsup.features.encode import embed
from selfsup.params import Params
from selfsup.processes.accelerator import make_accelerator
from selfsup.training.build import build_task, method_params
from selfsup.training.loop import Plan, planned_steps, train

BANK, QUERIES = 3000, 1000
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fashion(folder: Path | None, width: str, **pretrain) -> Params:
    """10,000 images of Fashion-MNIST with the views of `setups/fashion-mnist`."""
    path = None if folder is None else str(folder.resolve())
    data = {"source": "torchvision", "name": "FashionMNIST", "path": path, "image_size": 28}
    data |= {"limit": 10_000, "validation": 0.1}
    params = parameters(data, "simclr", NETWORKS[width], **pretrain)
    colours = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.0, "hue": 0.0}
    jitter = params.views.jitter.model_copy(update=colours)
    views = params.views.model_copy(update={"crop_scale": [0.3, 1.0], "grey": 0.0, "jitter": jitter})
    return params.model_copy(update={"views": views})


class Readings:
    """Accuracy over seconds of training; the clock stands still while it is read."""

    def __init__(self, params: Params, splits: dict[str, Split], every: int, name: str):
        self.params, self.splits, self.every, self.name = params, splits, every, name
        self.curve: list[tuple[float, float]] = []
        self.steps, self.seconds, self.start = 0, 0.0, time.perf_counter()

    def step(self, encoder: nn.Module) -> None:
        """The end of a training step; every few of them are followed by a reading."""
        self.steps += 1
        if self.steps % self.every:
            return
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.start
        encoder.eval()
        bank = embed(encoder, self.splits["train"], DEVICE, BANK)
        queries = embed(encoder, self.splits["validation"], DEVICE, QUERIES)
        accuracy = knn_accuracy(*bank, *queries)
        encoder.train()
        self.curve.append((self.seconds, accuracy))
        print(f"{self.name}: {self.seconds:.1f} s, kNN {100 * accuracy:.1f}", file=sys.stderr, flush=True)
        self.start = time.perf_counter()

    def until(self, accuracy: float) -> float:
        """Seconds until a reading is as high."""
        return next(seconds for seconds, found in self.curve if found >= accuracy)


def ours(params: Params, folder: Path, every: int) -> Readings:
    splits = open_splits(params.data, folder / "shards", verified=True)
    splits["validation"].gather([0])  # only readings use it; training images are decoded within the clock
    readings = Readings(params, splits, every, "ours")
    task = build_task(params, "simclr", method_params(params, "simclr"), splits["train"])
    task.after_step = lambda carry, progress: readings.step(task.encoder())  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as resume:
        plan = Plan(params.seed, params.pretrain, method_params(params, "simclr").optimizer, Path(resume))
        train(task, splits["train"], plan, make_accelerator(params.pretrain.precision))
    return readings


def lightly(params: Params, folder: Path, every: int, workers: int) -> Readings:
    splits = open_splits(params.data, folder / "shards", verified=True)
    for name in ("train", "validation"):
        splits[name].gather([0])  # only readings use them
    steps = planned_steps(splits["train"].samples, params.pretrain)
    torch.manual_seed(params.seed)
    readings = Readings(params, splits, every, "lightly")
    loop = Lightly(params, splits["train"], folder / "images", workers, steps, DEVICE.type)
    batches = loop.batches()
    for _ in range(steps):
        loop.step(next(batches))
        readings.step(loop.network["backbone"])
    return readings


def main() -> None:
    parser = common.arguments(__doc__, "time-to-accuracy.md")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's idx files; default: a download")
    parser.add_argument("--network", choices=NETWORKS, default="ResNet-9 w8")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--every", type=int, default=6, help="steps between two readings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=common.cores(), help="of lightly's DataLoader")
    args = parser.parse_args()
    found: dict[str, list[Readings]] = {"ours": [], "lightly": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = fashion(args.data, args.network, batch_size=args.batch, epochs=args.epochs)
        write(params.data.of("image"), 0, folder / "shards")
        split = open_splits(params.data, folder / "shards", verified=True)["train"]
        (folder / "images" / "all").mkdir(parents=True)
        for i in range(split.samples):
            (folder / "images" / "all" / f"{i:06d}.png").write_bytes(split.read(i))
        for seed in args.seeds:
            params = params.model_copy(update={"seed": seed})
            found["ours"].append(ours(params, folder, args.every))
            found["lightly"].append(lightly(params, folder, args.every, args.workers))
    rows = []
    lower = [min(run.curve[-1][1] for run in pair) for pair in zip(*found.values(), strict=True)]
    for name, runs in found.items():
        final = [run.curve[-1][1] for run in runs]
        times = [[run.until(share * last) for run, last in zip(runs, final, strict=True)] for share in (0.95, 0.99)]
        times.append([run.until(level) for run, level in zip(runs, lower, strict=True)])
        whole = [run.curve[-1][0] for run in runs]
        first = [100 * run.curve[0][1] for run in runs]
        cells = [common.spread(first, 1), common.spread([100 * each for each in final], 1)]
        rows.append([name, *cells, *(common.spread(each, 1) for each in (*times, whole))])
    text = (
        f"SimCLR, {args.network}, {split.samples:,} images of 28 px, batch {args.batch}, {args.epochs} epochs, reading "
        f"at every {args.every} steps (kNN, k = 20, {BANK:,} training against {QUERIES:,} validation images, off the "
        f"clock), seeds {args.seeds}: median (minimum to maximum). The lower last is of the pair."
    )
    times_to = ["s to 95 % of the last", "s to 99 %", "s to the lower last"]
    head = ["loop", "first reading, %", "last, %", *times_to, "s in all"]
    where = common.conditions("torch", "torchvision", "lightly", "faiss-cpu")
    common.write(args.out, "Time to accuracy", text, where, common.table(head, rows))


if __name__ == "__main__":
    main()
