"""Images/s of feature extraction against the bare encoder, and its memory over the number of images.

    python benchmarks/extract.py                     # writes benchmarks/results/extract.md

`write_features` reads images that are decoded already, encodes their centre views and writes a `.npy` file; the bare
encoder runs on one constant batch, in the same mode and memory format. They take turns. Memory is the peak of a fresh
process that extracts so many 8-px images from shards without keeping them (`data.cache: none`).
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
from workload import NETWORKS, image_folder, make_images, parameters

from selfsup.data.loader import Split, open_splits
from selfsup.data.shards import write
from selfsup.features.encode import BATCH
from selfsup.features.writer import write_features
from selfsup.params import Params
from selfsup.training.build import fresh_backbone

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def written(encoder: torch.nn.Module, split: Split, path: Path) -> float:
    """Images/s of `write_features`."""
    path.unlink(missing_ok=True)  # else it would be found whole
    start = time.perf_counter()
    write_features(encoder, split, DEVICE, path, "extract")
    return split.samples / (time.perf_counter() - start)


@torch.inference_mode()
def bare(encoder: torch.nn.Module, images: int, size: int) -> float:
    """Images/s of the encoder alone."""
    x = torch.rand(BATCH, 3, size, size, device=DEVICE).to(memory_format=torch.channels_last)
    encoder.eval()
    start = time.perf_counter()
    for _ in range(images // BATCH):
        encoder(x)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return images // BATCH * BATCH / (time.perf_counter() - start)


def tiny_tar(path: Path, images: int, size: int = 8) -> dict:
    """A tar of so many small PNGs, 16 different ones, as a source of `data`."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(16):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    with tarfile.open(path, "w") as tar:
        for i in range(images):
            member = tarfile.TarInfo(f"{i:08d}.png")
            member.size = len(files[i % 16])
            tar.addfile(member, io.BytesIO(files[i % 16]))
    return {"source": "webdataset", "path": str(path), "image_size": size, "cache": "none"}


def memory(params: Params, folder: Path) -> tuple[int, float, float]:
    """Images, peak MB before and after their extraction, in this process."""
    split = open_splits(params.data, folder, verified=True)["train"]
    encoder = fresh_backbone(params, "conv", split)
    before = common.peak_memory()
    write_features(encoder, split, DEVICE, folder / "features.npy", "extract")
    return split.samples, before, common.peak_memory()


def main() -> None:
    parser = common.arguments(__doc__, "extract.md")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["ResNet-9 w8", "ResNet-9 w16", "ViT w96 d3"]
    )
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="images, for memory")
    args = parser.parse_args()
    rows, held = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = image_folder(make_images(folder / "images", args.images, args.size), args.size)
        for name in args.networks:
            params = parameters(data, network=NETWORKS[name])
            if not (folder / "shards").exists():
                write(params.data.of("image"), 0, folder / "shards")
            split = open_splits(params.data, folder / "shards", verified=True)["train"]
            split.gather([0])  # decodes
            encoder = fresh_backbone(params, "conv", split).to(DEVICE, memory_format=torch.channels_last)
            bare(encoder, 2 * BATCH, args.size)  # warms up
            arms = {
                "ours": partial(written, encoder, split, args.size, folder / "features.npy"),
                "bare": partial(bare, encoder, split.samples, args.size),
            }
            speeds = common.alternate(arms, args.rounds, name)
            rows.append([name, *map(common.spread, speeds.values()), common.spread(common.ratios(*speeds.values()), 2)])
        for count in args.counts:
            params = parameters(tiny_tar(folder / "tiny.tar", count))
            write(params.data.of("image"), 0, folder / f"tiny-{count}")
            images, before, after = common.in_child(memory, params, folder / f"tiny-{count}")
            held.append([f"{images:,}", f"{before:.0f}", f"{after:.0f}"])
    text = f"Images/s, median (minimum to maximum) of {args.rounds} rounds over {args.images} images of {args.size} px."
    speed = common.table(["network", "write_features", "bare encoder", "ratio"], rows)
    peak = common.table(["images", "peak memory before, MB", "and after, MB"], held)
    common.write(args.out, "Extraction of features", text, common.conditions("torch", "timm"), speed, peak)


if __name__ == "__main__":
    main()
