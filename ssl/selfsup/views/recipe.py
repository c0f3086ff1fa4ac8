"""Views of a batch of images: the numbers come from a `Draw`, the pixels from `ops`.

A batch has `image` uint8 [B 3 H W] (or floats in 0..1) and `box` int64 [B 2], the height and width of the part of each
image, at its top left, that is picture and not padding. Views are floats [B 3 size size] in 0..1, made on the images'
device, without gradient and at full precision whatever the autocast. The draw's ids may lie on the CPU whatever the
images' device: the views are the same, and a GPU's queue is spared some waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from selfsup.params import JitterParams, ViewsParams
from selfsup.views import ops
from selfsup.views.draw import Draw

CROP_TRIES = 10
MASK_BLOCKS = 32
PART = 2**18  # pixels worked on at a time on a CPU, so that they stay in its caches


def two_views(batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int) -> tuple[Tensor, Tensor]:
    """Two random views of every image (Chen et al. 2020, arXiv:2002.05709; Grill et al. 2020, arXiv:2006.07733).

    Crop, flip, colour jitter, grey, blur and solarisation as `views` says, the two views independent of each other and
    each with its own probabilities of the last two operations.
    """

    def view(number: int) -> Tensor:
        fork = draw.fork(f"view {number + 1}")

        def make(images: Tensor, box: Tensor, rows: slice) -> Tensor:
            own = fork[rows]
            cropped = _crop(images, box, own, views, size)
            return _recolour(cropped, own, views, views.blur[number], views.solarize[number])

        return _in_parts(batch, size, make)

    return view(0), view(1)


def crop_view(batch: Mapping[str, Tensor], draw: Draw, views: ViewsParams, size: int) -> Tensor:
    """One random view of every image: crop and flip only."""
    return _in_parts(batch, size, lambda images, box, rows: _crop(images, box, draw[rows], views, size))


def centre_view(batch: Mapping[str, Tensor], size: int) -> Tensor:
    """The largest centred square of every picture, resized. Nothing is random."""

    def make(images: Tensor, box: Tensor, _: slice) -> Tensor:
        side = box.amin(dim=1, keepdim=True)
        return ops.resized_crop(images, torch.cat([(box - side) // 2, side, side], dim=1), size)

    return _in_parts(batch, size, make)


@torch.no_grad()
def _in_parts(batch: Mapping[str, Tensor], size: int, make: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    """`make(images, box, rows)` of the whole batch; on a CPU of a few samples at a time."""
    images, box = batch["image"], batch["box"]
    part = len(images)
    if images.device.type == "cpu":
        part = max(1, PART // max(size * size, images.shape[2] * images.shape[3]))
    parts = [slice(start, start + part) for start in range(0, len(images), part)]
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([make(images[rows], box[rows], rows) for rows in parts])


def crop_boxes(box: Tensor, draw: Draw, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Random crops of pictures of height and width `box` int64 [B 2]: int64 [B 4] (top, left, height, width).

    The share of the area is uniform in `scale`, width / height log-uniform in `ratio`, the place uniform (Szegedy et
    al. 2015, arXiv:1409.4842). Of ten such sizes the first that fits is taken; if none does, the largest centred crop
    whose shape is within `ratio`, as in torchvision's RandomResizedCrop.
    """
    device = box.device
    # in float64, so that devices that round logarithms otherwise agree on the whole pixels
    share, shape, place = (
        draw.uniform(use, n).to(device, torch.float64)
        for use, n in (("crop area", CROP_TRIES), ("crop ratio", CROP_TRIES), ("crop place", 2))
    )
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


def _crop(images: Tensor, box: Tensor, draw: Draw, views: ViewsParams, size: int) -> Tensor:
    boxes = crop_boxes(box, draw, views.crop_scale, views.crop_ratio)
    return ops.resized_crop(images, boxes, size, draw.bernoulli("flip", views.flip).to(images.device))


def _recolour(images: Tensor, draw: Draw, views: ViewsParams, blur: float, solarize: float) -> Tensor:
    if views.jitter.p > 0:
        images = _jitter(images, draw, views.jitter)
    if views.grey > 0:
        images = _some(images, draw.bernoulli("grey", views.grey), ops.to_grey)
    if blur > 0:
        low, high = views.blur_sigma
        kernel = 2 * max(1, images.shape[3] // 20) + 1  # odd, about a tenth of the side
        images = _some(
            images,
            draw.bernoulli("blur", blur),
            lambda chosen, sigma: ops.gaussian_blur(chosen, sigma, kernel),
            draw.uniform("blur sigma", low=low, high=high),
        )
    if solarize > 0:
        images = _some(images, draw.bernoulli("solarize", solarize), ops.solarize)
    return images


def _jitter(images: Tensor, draw: Draw, jitter: JitterParams) -> Tensor:
    strength = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    device = draw.key.device
    factors = neutral.to(device) + strength.to(device) * draw.uniform("jitter factors", 4, low=-1.0)
    order = draw.permutation("jitter order", 4)
    idle = ~draw.bernoulli("jitter", jitter.p)[:, None] | (strength.to(device) == 0)[order]
    return ops.colour_jitter(images, factors.to(images.device), order.masked_fill(idle, ops.NO_OPERATION))


def _some(images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """Replace the images where `chosen` (bool [B]) by `operation` of them and their `numbers` [B]."""
    rows = chosen.nonzero().flatten().to(images.device)
    if not len(rows):
        return images
    own = (number.to(images.device).index_select(0, rows) for number in numbers)
    return images.index_copy(0, rows, operation(images.index_select(0, rows), *own))


def patch_mask(
    draw: Draw, kind: Literal["random", "block", "grid"], ratio: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Hide a share `ratio` of the height x width patches of every image: `keep` and `restore` of `ops.patch_mask`.

    `random`: any patches; `block`: rectangles of 8 to 40 % of the image, one after the other until enough is hidden
    (Bao et al. 2021, arXiv:2106.08254); `grid`: keeps a regular grid, the same for every image. On the draw's device.
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
    rest = scores - draw.uniform("rest", patches)  # should the blocks not suffice, any of the other patches
    return ops.patch_mask(torch.where(scores > -MASK_BLOCKS, scores, rest), ratio)
