"""Images a second through two SimCLR views: batched ones, lightly's per-image ones, torchvision's batched ones.

    uv pip install -e ".[bench]"
    python benchmarks/views.py

Decoded images lie in memory. lightly's `SimCLRTransform` runs in a DataLoader with a worker a core; ours and
torchvision's run in this process on all cores. torchvision's v2 transforms take a batch, but give all its images the
same crop and colours, so that its row is a bound and not a rival. The contenders take turns, and the table has medians
and extremes. Writes benchmarks/results/views.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from selfsup.params import ViewsParams, parse
from selfsup.views import recipe
from selfsup.views.draw import Draw

SETTINGS = [(32, 32, 0.0, 1024), (64, 64, 0.5, 1024), (224, 96, 0.5, 512)]  # stored side, view side, blur, images
BATCH = 256
ROUNDS = 7
RESULTS = Path(__file__).parent / "results" / "views.md"


def view_params(blur: float) -> ViewsParams:
    jitter = {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    values = {"crop_scale": [0.2, 1.0], "crop_ratio": [0.75, 4 / 3], "flip": 0.5, "jitter": jitter, "grey": 0.2}
    more = {"blur": [blur, blur], "blur_sigma": [0.1, 2.0], "solarize": [0.0, 0.0]}
    return parse(ViewsParams, values | more)


class Pictures(Dataset):
    """In-memory images, one transform call each."""

    def __init__(self, images: Tensor, transform: Callable):
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images[i]))


def ours(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    views = view_params(blur)
    box = torch.tensor(images.shape[2:]).expand(len(images), 2)

    def run(epoch: int) -> None:
        for ids in torch.arange(len(images)).split(BATCH):
            batch = {"image": images[ids], "box": box[ids]}
            recipe.two_views(batch, Draw(0, epoch, ids), views, size)

    return run


def lightly(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    transform = SimCLRTransform(
        input_size=size, cj_strength=0.5, min_scale=0.2, gaussian_blur=blur, sigmas=(0.1, 2.0), normalize=None
    )
    loader = DataLoader(Pictures(images, transform), BATCH, num_workers=os.cpu_count() or 1, persistent_workers=True)

    def run(_: int) -> None:
        for _views in loader:
            pass

    return run


def torchvision(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * max(1, size // 20) + 1)], blur),
        ]
    )

    def run(_: int) -> None:
        for ids in torch.arange(len(images)).split(BATCH):
            batch = images[ids]
            transform(batch), transform(batch)

    return run


CONTENDERS = {
    "ours": ours,
    "lightly, DataLoader": lightly,
    "torchvision v2, one draw a batch": torchvision,
}


def measure(stored: int, size: int, blur: float, count: int) -> dict[str, list[float]]:
    images = torch.randint(0, 256, (count, 3, stored, stored), dtype=torch.uint8)
    runs = {name: make(images, size, blur) for name, make in CONTENDERS.items()}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for epoch in range(ROUNDS + 1):  # the first round warms up
        for name, run in runs.items():
            start = time.perf_counter()
            run(epoch)
            if epoch:
                speeds[name].append(count / (time.perf_counter() - start))
    return speeds


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    load = os.getloadavg()[0]
    lines = [
        "| image -> view, pixels | contender | median images/s | lowest - highest | ours / it |",
        "|" + " --- |" * 5,
    ]
    for stored, size, blur, count in SETTINGS:
        speeds = measure(stored, size, blur, count)
        best = statistics.median(speeds["ours"])
        for name, values in speeds.items():
            median = statistics.median(values)
            spread = f"{min(values):,.0f} - {max(values):,.0f}"
            lines.append(f"| {stored} -> {size} | {name} | {median:,.0f} | {spread} | {best / median:.1f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightly", "pillow"))
    conditions = [
        "# Two SimCLR views an image",
        "",
        f"- `python benchmarks/views.py`, Python {platform.python_version()}, {versions}",
        f"- {processor()}, {os.cpu_count()} cores, no GPU used; load before the run {load:.1f}",
        f"- batches of {BATCH}; {ROUNDS} rounds in which the contenders take turns, after one to warm up",
        "- crop, flip, jitter (p 0.8), grey (p 0.2) and, but for 32 pixels, blur (p 0.5); noise as images",
        "- torchvision's v2 gives all images of a batch the same crop and colours: a bound, not a rival",
        "",
        *lines,
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(conditions) + "\n")
    print("\n".join(conditions))


if __name__ == "__main__":
    main()
