"""Images sharded a second by number of processes, and cost and memory an image over the number of images.

    python benchmarks/shard.py                       # writes benchmarks/results/shard.md
    python benchmarks/shard.py --counts 10000 100000 1000000

A folder of links to 16 different PNGs of 8 px in ten class folders is written as shards by `selfsup.data.shards.write`,
in a fresh process each time, checksums and statistics included. Memory is the peak of that process, which holds the
list of images, and of the largest process it starts, less what both held before the first image.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import common
import numpy as np
import psutil
from PIL import Image

from selfsup.blocks.image import ImageData
from selfsup.data.shards import write

PER_FOLDER = 50_000  # links to one file that file systems allow: ext4 has 65,000


def make_links(root: Path, count: int, size: int = 8) -> None:
    """A folder of `count` images in ten class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        folder = root / f"class{i % 10}" / f"{i // PER_FOLDER:04d}"
        if i % PER_FOLDER < 10:
            folder.mkdir(parents=True, exist_ok=True)
            first = folder / f"{i:09d}.png"
            Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(first)
        else:
            origin = root / f"class{i % 10}" / folder.name / f"{i // PER_FOLDER * PER_FOLDER + i % 10:09d}.png"
            os.link(origin, folder / f"{i:09d}.png")


def shard(data: ImageData, folder: Path, processes: int) -> tuple[float, float, float]:
    """Seconds, MB that this process took at most, and MB that the largest of those it starts held at most."""
    held, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            with contextlib.suppress(psutil.NoSuchProcess):
                held.extend(child.memory_info().rss / 1e6 for child in psutil.Process().children())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, start = common.peak_memory(), time.perf_counter()
    write(data, 0, folder, processes)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    shutil.rmtree(folder)
    return seconds, common.peak_memory() - before, max(held)


def main() -> None:
    parser = common.arguments(__doc__, "shard.md")
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 100_000], help="images")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="of the smallest count; larger ones run once")
    args = parser.parse_args()
    from workload import image_folder, parameters  # late: the processes that write shards import this file too

    rows: list[list] = []
    for count in sorted(args.counts):
        with tempfile.TemporaryDirectory() as scratch:
            make_links(Path(scratch, "images"), count)
            data = parameters(image_folder(Path(scratch, "images"), 8)).data.of("image")
            found: dict[int, list] = {processes: [] for processes in args.processes}
            for _ in range(args.rounds if count == min(args.counts) else 1):
                for processes, values in found.items():
                    values.append(common.in_child(shard, data, Path(scratch, "shards"), processes))
                    print(count, processes, values[-1], flush=True)
        for processes, values in found.items():
            seconds, own, largest = zip(*values, strict=True)
            speed = common.spread([count / each for each in seconds])
            cost = common.spread([1e6 * each / count for each in seconds])
            rows.append([f"{count:,}", processes, speed, cost, f"{max(own):.0f}", f"{max(largest):.0f}"])
    text = (
        "Median (minimum to maximum). The time has the listing of the folder, the start of the processes and the "
        "checksums in it. Memory: what the first process took beyond its start, and the most of any that it started."
    )
    head = ["images", "processes", "images/s", "µs an image", "memory, MB", "largest worker, MB"]
    where = common.conditions("numpy", "pillow")
    common.write(args.out, "Writing shards", text, where, common.table(head, rows))


if __name__ == "__main__":
    main()
