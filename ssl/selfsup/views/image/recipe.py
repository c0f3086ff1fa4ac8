"""Views of a batch of images: the numbers come from a `Draw`, the pixels from `ops`.

A batch has `image` uint8 [B 3 H W] (or floats in 0..1) and `box` int64 [B 2], the height and width of the part of each
image, at its top left, that is picture and not padding. Views are floats [B 3 size size] in 0..1, made on the images'
device, without gradient and at full precision whatever the autocast. The draw's ids may stay on the CPU: the views are
the same, and a GPU waits less often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import selfsup.views.image.ops as ops
from selfsup.draw import Draw
from selfsup.params import CropsParams, ViewsParams
from selfsup.views.image.colour import NO_OPERATION, colour_jitter, matrix_jitter, to_grey

CROP_USES = {"crop area": 10, "crop ratio": 10, "crop place": 2}  # tries, tries, and once from top and left
USES = dict.fromkeys(("flip", "jitter", "grey", "blur", "blur sigma", "solarize"), 1)
USES |= {"jitter order": 4, "jitter factors": 4}
MASK_BLOCKS = 32
PART = 2**18  # pixels of a view worked on at a time on a CPU, so that they stay in its caches


class Numbers(NamedTuple):
    """All that is random in a batch of views, one row per sample."""

    crop: Tensor  # int64 [B 4]: top, left, height, width
    flip: Tensor  # bool [B]
    factors: Tensor  # [B 4]: brightness, contrast, saturation, hue; neutral where they do not act
    order: Tensor  # int64 [B 4]: which of those comes first, second, ...; 4: none
    grey: Tensor  # bool [B]
    blur: Tensor  # bool [B]
    sigma: Tensor  # [B], pixels
    solarize: Tensor  # bool [B]


def two_views(batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int) -> tuple[Tensor, Tensor]:
    """Two random views of every image (Chen et al. 2020, arXiv:2002.05709; Grill et al. 2020, arXiv:2006.07733).

    Crop, flip, colour jitter, grey, blur and solarisation as set in `views`; the two views are independent and
    have separate probabilities of blur and solarisation.
    """

    recipes = [_strong(batch, draw.fork(f"view {i + 1}"), views, size, i) for i in (0, 1)]
    first, second = _make_views(batch["image"], size, *recipes)
    return first, second


def two_places(
    batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The crop int64 [B 4] (top, left, height, width) and flip bool [B] of each of the views of `two_views`."""
    first, second = (view_numbers(batch["box"], draw.fork(f"view {i + 1}"), views, i) for i in (0, 1))
    return (first.crop, first.flip), (second.crop, second.flip)


def strong_view(batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int) -> Tensor:
    """One random view of every image, as the first of `two_views`."""
    return _make_views(batch["image"], size, _strong(batch, draw, views, size, 0))[0]


def _strong(batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int, view: int) -> Recipe:
    def numbers(rows: slice) -> Numbers:
        return view_numbers(batch["box"][rows], draw[rows], views, view)

    return numbers, lambda images, *own: augment(images, Numbers(*own), size, views.colour)


def multi_crop(
    batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int, crops: CropsParams
) -> tuple[Tensor, ...]:
    """`two_views`, then `crops.count` local ones [B 3 crops.size crops.size] (Caron et al. 2020, arXiv:2006.09882).

    A local view covers `crops.scale` of the image. Its probability of blur is the mean of the two global views'. It is
    never solarised.
    """
    blur = sum(views.blur) / 2
    local = views.model_copy(update={"crop_scale": crops.scale, "blur": [blur] * 2, "solarize": [0.0] * 2})

    recipes = [_strong(batch, draw.fork(f"local view {i + 1}"), local, crops.size, 0) for i in range(crops.count)]
    small = _make_views(batch["image"], crops.size, *recipes) if recipes else []
    return *two_views(batch, draw, views, size), *small


def crop_view(batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int) -> Tensor:
    """One random view of every image: crop and flip only."""

    def numbers(rows: slice) -> tuple[Tensor, Tensor]:
        crop = crop_boxes(batch["box"][rows], draw[rows], views.crop_scale, views.crop_ratio)
        return crop, draw[rows].bernoulli("flip", views.flip)

    return _make_views(batch["image"], size, (numbers, partial(_crop, size=size)))[0]


def centre_view(batch: Mapping[str, Tensor], size: int) -> Tensor:
    """The largest centred square of every picture, resized. Deterministic."""
    box = batch["box"]
    side = box.amin(dim=1, keepdim=True)
    square = torch.cat([(box - side) // 2, side, side], dim=1)
    recipe = (lambda rows: [square[rows]], partial(ops.resized_crop, size=size))
    return _make_views(batch["image"], size, recipe)[0]


def _crop(images: Tensor, crop: Tensor, flip: Tensor, size: int) -> Tensor:
    device = images.device
    return ops.resized_crop(images, crop.to(device, non_blocking=True), size, flip.to(device, non_blocking=True))


# a function rows -> random numbers [B ...], and a function (images, numbers) -> views
Recipe = tuple[Callable[[slice], Sequence[Tensor]], Callable[..., Tensor]]


def _make_views(images: Tensor, size: int, *recipes: Recipe) -> list[Tensor]:
    """A view of every image by each of the recipes.

    On a CPU a few samples are processed at a time, so that they stay in its caches. Large images are cropped one by
    one, and each Python thread makes a share of the views. Small images use one Python thread: additional threads make
    OpenMP's pool wait passively, which slows the training step more than they save here.
    """
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    made = [torch.empty(*images.shape[:2], size, size, dtype=dtype, device=images.device) for _ in recipes]
    threads = torch.get_num_threads() if images.device.type == "cpu" and ops.large(images) else 1
    share = math.ceil(len(images) / math.ceil(threads / len(recipes)))
    most = PART if threads > 1 else 4 * PART  # OpenMP's threads share one part
    part = max(1, most // size**2) if images.device.type == "cpu" else share

    def work(view: Tensor, recipe: Recipe, start: int) -> None:
        numbers, make = recipe
        rows = slice(start, start + share)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):  # both are per thread
            for out, *own in zip(*(x.split(part) for x in (view[rows], images[rows], *numbers(rows))), strict=True):
                out.copy_(make(*own))

    jobs = [(*pair, start) for start in range(0, len(images), share) for pair in zip(made, recipes, strict=True)]
    if threads == 1:
        for job in jobs:
            work(*job)
    else:
        torch.set_num_threads(1)  # for this thread and the threads it starts
        try:
            with ThreadPoolExecutor(threads - 1) as pool:
                others = [pool.submit(work, *job) for job in jobs[1:]]
                work(*jobs[0])
                for other in others:
                    other.result()  # raises the thread's exception
        finally:
            torch.set_num_threads(threads)
    return made


def view_numbers(box: Tensor, draw: Draw, views: ViewsParams, view: int) -> Numbers:
    """The random numbers of view 0 or 1 of pictures of height and width `box` int64 [B 2]."""
    jitter = views.jitter
    device = draw.key.device
    strength = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue], device=device)
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], device=device)
    u = draw.uniforms(USES)
    order = u["jitter order"].argsort(dim=1, stable=True)
    strength = strength * (u["jitter"] < jitter.p)  # [B 4]
    low, high = views.blur_sigma
    return Numbers(
        crop=crop_boxes(box, draw, views.crop_scale, views.crop_ratio),
        flip=u["flip"][:, 0] < views.flip,
        factors=neutral + strength * (2 * u["jitter factors"] - 1),
        order=order.masked_fill(strength.gather(1, order) == 0, NO_OPERATION),
        grey=u["grey"][:, 0] < views.grey,
        blur=u["blur"][:, 0] < views.blur[view],
        sigma=low + (high - low) * u["blur sigma"][:, 0],
        solarize=u["solarize"][:, 0] < views.solarize[view],
    )


def augment(images: Tensor, numbers: Numbers, size: int, colour: Literal["exact", "matrix"]) -> Tensor:
    """The views [B 3 size size] that `numbers` describe."""
    kernel = 2 * max(1, size // 20) + 1  # of the blur: odd, about a tenth of the side
    device = images.device
    images = _crop(images, numbers.crop, numbers.flip, size)
    factors = numbers.factors.to(device, non_blocking=True)
    if colour == "matrix":
        images = matrix_jitter(images, factors, numbers.grey.to(device, non_blocking=True))
    else:
        images = colour_jitter(images, factors, numbers.order)
        _some(images, numbers.grey, to_grey)
    _some(images, numbers.blur, lambda some, sigma: ops.gaussian_blur(some, sigma, kernel), numbers.sigma)
    _some(images, numbers.solarize, ops.solarize)
    return images


def _some(images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *numbers: Tensor) -> None:
    """Replace the images where `chosen` (bool [B]) by `operation` of them and their `numbers` [B], in place."""
    rows = chosen.nonzero().flatten()
    if len(rows):
        own = (number[rows].to(images.device, non_blocking=True) for number in numbers)
        rows = rows.to(images.device, non_blocking=True)
        images.index_copy_(0, rows, operation(images.index_select(0, rows), *own))


def crop_boxes(box: Tensor, draw: Draw, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Random crops of pictures of height and width `box` int64 [B 2]: int64 [B 4] (top, left, height, width).

    The share of the area is uniform in `scale`, width / height log-uniform in `ratio`, the position uniform (Szegedy et
    al. 2015, arXiv:1409.4842). Ten sizes are drawn and the first that fits is taken. If none fits, the crop is the
    largest centred one whose shape is within `ratio`, as in torchvision's RandomResizedCrop.
    """
    device = box.device
    # in float64, so that devices that round logarithms differently agree on whole pixels
    share, shape, place = (u.to(device, torch.float64) for u in draw.uniforms(CROP_USES).values())
    height, width = box.double().split(1, dim=1)  # [B 1]
    area = (scale[0] + (scale[1] - scale[0]) * share) * height * width  # [B tries]
    shape = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * shape).exp()
    tall, wide = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first, any_fits = fits.int().argmax(dim=1, keepdim=True), fits.any(dim=1, keepdim=True)
    tall = torch.where(any_fits, tall.gather(1, first), (width / ratio[0]).round().clamp(min=1).minimum(height))
    wide = torch.where(any_fits, wide.gather(1, first), (height * ratio[1]).round().clamp(min=1).minimum(width))
    room = torch.cat([height - tall, width - wide], dim=1)  # [B 2]
    corner = torch.where(any_fits, (place * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner, tall, wide], dim=1).long()


def patch_mask(
    draw: Draw, kind: Literal["random", "block", "grid"], ratio: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Hide a share `ratio` of the height x width patches of every image: `keep` and `restore` of `ops.patch_mask`.

    `random`: any patches. `block`: rectangles of 8 to 40 % of the image are hidden until enough patches are hidden (Bao
    et al. 2021, arXiv:2106.08254). `grid`: a regular grid is kept, the same for every image. On the draw's device.
    """
    patches = height * width
    if kind == "random":
        return ops.patch_mask(draw.bits("patches", patches), ratio)
    if kind == "grid":
        return ops.patch_mask(ops.grid_scores(height, width).to(draw.key.device).expand(len(draw.key), -1), ratio)
    side = torch.tensor([height, width], device=draw.key.device)
    area = draw.uniform("block area", MASK_BLOCKS, low=0.08, high=0.4) * patches
    shape = draw.uniform("block ratio", MASK_BLOCKS, low=math.log(0.3), high=-math.log(0.3)).exp()
    extent = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], dim=2).round().long()  # [B n 2]
    extent = extent.clamp(min=1).minimum(side)
    corner = (draw.uniform("block place", MASK_BLOCKS, 2) * (side - extent + 1)).long()
    scores = ops.block_scores(torch.cat([corner, extent], dim=2), height, width)
    line = torch.arange(patches, device=draw.key.device) / patches
    line = torch.where(draw.bernoulli("last block", 0.5)[:, None], line, line.flip(0))
    # the last block is hidden in part, from its first or its last row; then patches outside all blocks, at random
    first = torch.where(scores > -MASK_BLOCKS, line, draw.uniform("rest", patches))
    return ops.patch_mask(scores - first, ratio)
