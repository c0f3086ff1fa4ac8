"""Decoded samples/s from shards: this project's reader against webdataset's own, on the same tars.

    python benchmarks/read.py                        # writes benchmarks/results/read.md

Ours gives random batches of the whole set through `train_batches`, its images decoded at each use (`none`), kept in a
file (`disk`) or in memory; what decoding them once costs is said apart. webdataset reads the tars in order, shuffles
in a buffer of 1,000 and decodes in a DataLoader with a worker a core. They take turns; no network is trained.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import torch
from workload import image_folder, make_images, parameters

from selfsup.data.loader import Split, open_splits, train_batches
from selfsup.data.shards import write

BATCH = 256


def ours(split: Split, seconds: float) -> float:
    """Samples/s of random batches."""
    steps, done, start = 10**6, 0, time.perf_counter()
    for batch in train_batches(split, seed=0, batch_size=BATCH, start_step=0, steps=steps):
        done += len(batch["id"])
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def webdataset(tars: list[str], workers: int, seconds: float) -> float:
    """Samples/s of webdataset's reader, its workers started before the clock."""
    import webdataset

    shards = webdataset.WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=None)
    pictures = shards.shuffle(1000).decode("torchrgb8").to_tuple("jpg;png", "cls").batched(BATCH)
    batches = iter(webdataset.WebLoader(pictures, batch_size=None, num_workers=workers))
    for _ in range(2 * workers + 1):
        next(batches)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images, _ = next(batches)
        done += len(images)
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = common.arguments(__doc__, "read.md")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--seconds", type=float, default=2, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=common.cores(), help="of webdataset's loader")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DVC_ROOT"] = scratch  # where decoded images are kept
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png")):
            folder = Path(scratch, suffix)
            data = image_folder(make_images(folder / "images", args.images, args.size, suffix), args.size)
            write(parameters(data | {"samples_per_shard": 2000}).data.of("image"), 0, folder / "shards")
            splits, once = {}, {}
            for cache in ("none", "disk", "memory"):
                kept = parameters(data | {"cache": cache}).data
                splits[cache] = open_splits(kept, folder / "shards", verified=True)["train"]
                start = time.perf_counter()
                splits[cache].gather(torch.arange(BATCH))
                once[cache] = time.perf_counter() - start
            tars = sorted(str(path) for path in (folder / "shards" / "train").glob("*.tar"))
            arms = {"webdataset": partial(webdataset, tars, args.workers, args.seconds)}
            arms |= {f"cache: {name}": partial(ours, split, args.seconds) for name, split in splits.items()}
            speeds = common.alternate(arms, args.rounds, kind)
            for name, values in speeds.items():
                over = common.spread(common.ratios(values, speeds["webdataset"]), 1)
                first = once.get(name.removeprefix("cache: "))
                rows.append([kind, name, common.spread(values), over, "" if first is None else f"{first:.2f}"])
    text = (
        f"Decoded samples/s, median (minimum to maximum) of {args.rounds} rounds of {args.seconds:g} s; "
        f"{args.images} images of {args.size} px, batches of {BATCH}, {args.workers} workers for webdataset."
    )
    head = ["files", "reader", "samples/s", "over webdataset", "first batch, s"]
    where = common.conditions("torch", "webdataset", "pillow")
    common.write(args.out, "Reading shards", text, where, common.table(head, rows))


if __name__ == "__main__":
    main()
