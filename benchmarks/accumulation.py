"""What exact accumulation costs: SimCLR's batch in chunks against the whole batch at once, time and memory.

    python benchmarks/accumulation.py                # writes benchmarks/results/accumulation.md

With `pretrain.chunk_size`, the loop embeds the batch chunk by chunk, takes the loss over all embeddings, and passes
each chunk through the network again with its part of the gradient. Every cell is a fresh process; memory is what it
took beyond what it held before training: the set's decoded images are the same few in every cell.
"""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path

import common
import torch
from step import Clock, Stop, ours
from workload import NETWORKS, image_folder, make_images, parameters

from selfsup.data.shards import write
from selfsup.params import Params


def cost(params: Params, folder: Path, seconds: float) -> tuple[float, float]:
    """Seconds a step, and MB that the steps took."""
    before, clock = common.peak_memory(), Clock(seconds, warmup=1, steps=2)
    with contextlib.suppress(Stop):
        ours(params, folder, clock)
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0
    return clock.step, gpu or common.peak_memory() - before


def main() -> None:
    parser = common.arguments(__doc__, "accumulation.md")
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 512, 1024, 2048])
    parser.add_argument("--chunk", type=int, default=128, help="images")
    parser.add_argument("--method", choices=("simclr", "byol"), default="simclr")
    parser.add_argument("--network", choices=NETWORKS, default="ResNet-9 w8")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--seconds", type=float, default=1, help="timed in each cell, at least two steps")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = image_folder(make_images(folder / "images", max(args.batches) * 11 // 10, args.size), args.size)
        for batch in args.batches:
            held: dict[str, list[float]] = {"whole": [], "chunks": []}

            def cell(name: str, chunk: int | None, batch: int = batch, held: dict = held) -> float:
                settings = {"batch_size": batch, "chunk_size": chunk, "epochs": 1000}
                params = parameters(data, args.method, NETWORKS[args.network], **settings)
                if not (folder / "shards").exists():
                    write(params.data.of("image"), 0, folder / "shards")
                seconds, memory = common.in_child(cost, params, folder, args.seconds)
                held[name].append(memory)
                return seconds

            arms = {"whole": partial(cell, "whole", None), "chunks": partial(cell, "chunks", args.chunk)}
            times = common.alternate(arms, args.rounds, f"batch {batch}")
            over = common.ratios(times["chunks"], times["whole"])
            speeds = [common.spread(times[name], 2) for name in arms]
            rows.append([batch, *speeds, common.spread(over, 2), *(common.spread(held[name]) for name in arms)])
    text = (
        f"{args.method}, {args.network}, two views an image of {args.size} px, chunks of {args.chunk}; median (minimum "
        f"to maximum) of {args.rounds} rounds."
    )
    head = ["batch", "whole, s a step", "chunks, s a step", "cost", "whole, MB", "chunks, MB"]
    common.write(args.out, "Exact accumulation", text, common.conditions("torch"), common.table(head, rows))


if __name__ == "__main__":
    main()
