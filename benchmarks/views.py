"""Images a second through two SimCLR views: batched ones, lightly's and torchvision's per-image ones, kornia's.

    uv pip install -e ".[bench]"
    python benchmarks/views.py

Decoded images lie in memory. What takes an image at a time (lightly's `SimCLRTransform`, torchvision's v2) runs in a
DataLoader with a worker a core, the rest in this process on all cores. torchvision's v2 transforms also take a batch,
but give all its images the same crop and colours, so that this row is a bound and not a rival. kornia draws for each
image, in one order of the jitter a batch. The contenders take turns, and the table has medians and extremes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import common
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from selfsup.draw import Draw
from selfsup.params import ViewsParams, parse
from selfsup.processes.allocator import keep_freed_memory
from selfsup.views.image import colour, ops, recipe

SETTINGS = {32: (32, 0.0, 1024), 64: (64, 0.5, 1024), 224: (96, 0.5, 512)}  # stored side: view side, blur, images
BATCH = 256


def view_params(blur: float, colour: str) -> ViewsParams:
    jitter = {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    values = {"crop_scale": [0.2, 1.0], "crop_ratio": [0.75, 4 / 3], "flip": 0.5, "jitter": jitter, "grey": 0.2}
    more = {"colour": colour, "blur": [blur, blur], "blur_sigma": [0.1, 2.0], "solarize": [0.0, 0.0]}
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


def ours(images: Tensor, size: int, blur: float, mode: str = "exact") -> Callable[[int], None]:
    views = view_params(blur, mode)
    box = torch.tensor(images.shape[2:]).expand(len(images), 2)

    def run(epoch: int) -> None:
        for ids in torch.arange(len(images)).split(BATCH):
            batch = {"image": images[ids], "box": box[ids]}
            recipe.two_views(batch, Draw(0, epoch, ids), views, size)

    return run


def lightly(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(
        input_size=size, cj_strength=0.5, min_scale=0.2, gaussian_blur=blur, sigmas=(0.1, 2.0), normalize=None
    )
    return loaded(images, transform)


def loaded(images: Tensor, transform: Callable) -> Callable[[int], None]:
    loader = DataLoader(Pictures(images, transform), BATCH, num_workers=common.cores(), persistent_workers=True)

    def run(_: int) -> None:
        for _views in loader:
            pass

    return run


def torchvision_transform(size: int, blur: float, *first: Callable) -> Callable:
    return v2.Compose(
        [
            *first,
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * max(1, size // 20) + 1)], blur),
        ]
    )


def torchvision_each(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    transform = torchvision_transform(size, blur, v2.ToImage())
    return loaded(images, lambda image: (transform(image), transform(image)))


def batched(images: Tensor, transform: Callable) -> Callable[[int], None]:
    def run(_: int) -> None:
        for ids in torch.arange(len(images)).split(BATCH):
            batch = images[ids]
            transform(batch), transform(batch)

    return run


def torchvision(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    return batched(images, torchvision_transform(size, blur))


def kornia(images: Tensor, size: int, blur: float) -> Callable[[int], None]:
    import kornia.augmentation as kornia_augmentation

    kernel = 2 * max(1, size // 20) + 1
    transform = kornia_augmentation.AugmentationSequential(
        kornia_augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        kornia_augmentation.RandomHorizontalFlip(p=0.5),
        kornia_augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia_augmentation.RandomGrayscale(p=0.2),
        kornia_augmentation.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=blur),
    )
    return batched(images, lambda batch: transform(batch.float() / 255))


CONTENDERS = {
    "ours, colour: exact": ours,
    "ours, colour: matrix": lambda *setting: ours(*setting, mode="matrix"),
    "lightly, DataLoader": lightly,
    "torchvision v2, DataLoader": torchvision_each,
    "torchvision v2, one draw a batch": torchvision,
    "kornia": kornia,
}


def measure(stored: int, rounds: int) -> list[list[object]]:
    """The rows of one setting."""
    size, blur, count = SETTINGS[stored]
    images = torch.randint(0, 256, (count, 3, stored, stored), dtype=torch.uint8)

    def arm(run: Callable[[int], None]) -> Callable[[], float]:
        def speed() -> float:
            epoch = next(epochs)
            start = time.perf_counter()
            run(epoch)
            return count / (time.perf_counter() - start)

        epochs = iter(range(rounds + 1))
        speed()  # warms up
        return speed

    runs = {name: arm(make(images, size, blur)) for name, make in CONTENDERS.items()}
    speeds = common.alternate(runs, rounds, f"{stored} -> {size}")
    exact, matrix, *_ = speeds.values()
    return [
        [f"{stored} -> {size}", name, common.spread(values)]
        + [f"{statistics.median(common.ratios(mine, values)):.1f}" for mine in (exact, matrix)]
        for name, values in speeds.items()
    ]


def operations(stored: int, rounds: int) -> list[list[object]]:
    """Milliseconds of each operation on one view of a batch, on one thread."""
    size, blur, _ = SETTINGS[stored]
    images = torch.randint(0, 256, (BATCH, 3, stored, stored), dtype=torch.uint8)
    box, draw = torch.full((BATCH, 2), stored), Draw(0, 0, torch.arange(BATCH))
    views = view_params(blur, "exact")
    n = recipe.view_numbers(box, draw, views, 0)
    x = ops.resized_crop(images, n.crop, size, n.flip)
    half, kernel = x[: BATCH // 2], 2 * max(1, size // 20) + 1
    work = {
        "draw the numbers": lambda: recipe.view_numbers(box, draw, views, 0),
        "crop, resize, flip": lambda: ops.resized_crop(images, n.crop, size, n.flip),
        "jitter, exact": lambda: colour.colour_jitter(x, n.factors, n.order),
        "jitter and grey, matrix": lambda: colour.matrix_jitter(x, n.factors, n.grey),
        "blur of half of the images": lambda: ops.gaussian_blur(half, n.sigma[: len(half)], kernel),
        "bound: uint8 to float, copied once": lambda: images.float().add_(1),
        "bound: the views copied once": x.clone,
    }
    parts = dict(work) if blur else {name: call for name, call in work.items() if "blur" not in name}
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, call in parts.items():
        call()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        rows.append([f"{stored} -> {size}", name, common.spread(times, 1)])
    torch.set_num_threads(threads)
    return rows


def main() -> None:
    parser = common.arguments(__doc__, "views.md")
    parser.add_argument("--stored", type=int, nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()  # as the stages do
    profile = [row for stored in args.stored for row in operations(stored, 10 * args.rounds)]
    rows = [row for stored in args.stored for row in measure(stored, args.rounds)]
    common.write(
        args.out,
        "Two SimCLR views an image",
        common.conditions("torch", "torchvision", "lightly", "kornia", "pillow"),
        f"Images a second: median (lowest to highest) of {args.rounds} rounds in which the contenders take turns, "
        f"after one to warm up; batches of {BATCH}. Crop, flip, jitter (p 0.8), grey (p 0.2) and, but for 32 "
        "pixels, blur (p 0.5) of noise. `torchvision v2, one draw a batch` gives all images of a batch the same crop "
        "and colours: a bound, not a rival.",
        common.table(
            ["image -> view, pixels", "contender", "images/s", "exact / it", "matrix / it"],
            rows,
        ),
        "## Where the time goes",
        f"One view of {BATCH} images on one thread, the whole batch at once; {10 * args.rounds} times.",
        common.table(["image -> view, pixels", "operation", "ms"], profile),
    )


if __name__ == "__main__":
    main()
