"""Shapes of whole batches with one number per sample: pure functions, no randomness, any device.

Images are floats [B 3 H W] in 0..1 unless stated otherwise; the dtype (float32 or float64) is kept, gradients are not.
Each operation equals torchvision's of the same name at the same numbers up to rounding, sample by sample.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 64 * 64  # pixels; on a CPU, multiplying larger images by mostly zeros costs more than a call per image


def resize_weights(start: Tensor, length: Tensor, size: int, out: int, dtype: torch.dtype, flip: Tensor) -> Tensor:
    """Antialiased linear interpolation of [start, start + length) of an axis of `size` pixels: matrices [B out size].

    Output pixel i lies at c = (i + 1/2) length / out in the crop and weighs the pixel at x by the triangle
    1 - |x - c| / max(1, length / out), over the crop's own pixels alone. `flip` (bool [B]) reverses the output.
    """
    scale = length.to(dtype) / out  # [B]
    support = scale.clamp(min=1)
    pixel = torch.arange(size, device=start.device, dtype=dtype) + 0.5 - start.to(dtype)[:, None]  # [B size]
    inside = (pixel > 0) & (pixel < length[:, None])
    pixel = torch.where(inside, pixel / support[:, None], torch.inf)  # infinitely far: no weight
    row = torch.arange(out, device=start.device)
    row = torch.where(flip[:, None], out - 1 - row, row)  # [B out]
    centre = (row + 0.5) * (scale / support)[:, None]
    weights = (pixel[:, None] - centre[:, :, None]).abs_().neg_().add_(1).clamp_(min=0)  # [B out size]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def large(images: Tensor) -> bool:
    """Whether images [B C H W] are better cropped one by one on a CPU."""
    return images.shape[2] * images.shape[3] > SMALL


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it to a square, antialiased bilinear: [B 3 H W] -> float [B 3 size size].

    Images are uint8 in 0..255 or floats in 0..1. `boxes` int64 [B 4] are (top, left, height, width) in pixels, inside
    the image; pixels outside a box have no effect. `flip` (bool [B]) mirrors left and right.
    """
    flip = torch.zeros(len(images), dtype=torch.bool, device=images.device) if flip is None else flip
    one_by_one = images.device.type == "cpu" and large(images)
    crop = crop_one_by_one if one_by_one else crop_by_matrices
    return crop(images, boxes, size, flip).clamp_(0, 1)  # only rounding exceeds 0..1


def crop_by_matrices(images: Tensor, boxes: Tensor, size: int, flip: Tensor) -> Tensor:
    """`resized_crop` as two matrix products per image; on a CPU, one product and a weighted sum of a few rows."""
    batch, channels, height, width = images.shape
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    top, left, tall, wide = boxes.unbind(1)
    columns = resize_weights(left, wide, width, size, dtype, flip)  # [B size W]
    if images.dtype == torch.uint8:
        columns.div_(255)
    images = images.to(dtype)
    if images.device.type == "cpu":
        return (resize_rows(images, top, tall, size).flatten(1, 2) @ columns.mT).view(batch, channels, size, size)
    rows = resize_weights(top, tall, height, size, dtype, torch.zeros_like(flip))  # [B size H]
    lines = images.reshape(batch, channels * height, width) @ columns.mT  # [B 3H size]
    return rows[:, None] @ lines.view(batch, channels, height, size)


def resize_rows(images: Tensor, top: Tensor, tall: Tensor, out: int) -> Tensor:
    """Resize the rows as `resize_weights` does, reading only rows of non-zero weight: [B C H W] -> [B C out W]."""
    batch, channels, height, width = images.shape
    scale = (tall.to(images.dtype) / out)[:, None]  # [B 1]
    support = scale.clamp(min=1)
    centre = (torch.arange(out, dtype=images.dtype) + 0.5) * scale  # [B out]
    taps = torch.arange(max(2, math.ceil(2 * height / out)))
    row = (centre - support - 0.5).ceil()[:, :, None] + taps  # [B out taps]
    weights = ((row + 0.5 - centre[:, :, None]) / support[:, :, None]).abs_().neg_().add_(1).clamp_(min=0)
    last = (tall - 1)[:, None, None]
    weights.masked_fill_((row < 0) | (row > last), 0).div_(weights.sum(dim=2, keepdim=True))
    row = row.long().clamp_(min=0).minimum(last) + top[:, None, None]
    row = row[:, None] + torch.arange(batch * channels).view(batch, channels, 1, 1) * height  # [B C out taps]
    weights = weights[:, None].expand(row.shape).reshape(-1, len(taps))
    table = images.reshape(-1, width)
    lines = F.embedding_bag(row.view(-1, len(taps)), table, mode="sum", per_sample_weights=weights)
    return lines.view(batch, channels, out, width)


def crop_one_by_one(images: Tensor, boxes: Tensor, size: int, flip: Tensor) -> Tensor:
    """`resized_crop` with one call per image, which computes nothing outside the box."""
    dtype, scale = (torch.float32, 1 / 255) if images.dtype == torch.uint8 else (images.dtype, 1.0)
    views = torch.empty(*images.shape[:2], size, size, dtype=dtype, device=images.device)
    for view, image, (top, left, tall, wide), mirror in zip(views, images, boxes.tolist(), flip.tolist(), strict=True):
        crop = image[None, :, top : top + tall, left : left + wide].to(dtype)
        resized = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        torch.mul(resized.flip(2) if mirror else resized, scale, out=view)
    return views


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Convolve with a Gaussian of `sigma` [B] > 0 pixels, cut to `kernel` (odd) pixels, the image mirrored at its rim.

    The kernel is shorter than twice the image's sides.
    """
    half, groups = kernel // 2, images.shape[0] * images.shape[1]  # each channel has its own convolution
    distance = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    taps = torch.softmax(-0.5 * (distance / sigma.to(images.dtype)[:, None]) ** 2, dim=1)  # [B kernel], sum 1
    taps = taps.repeat_interleave(images.shape[1], dim=0)[:, None, None]  # [3B 1 1 kernel]
    padded = F.pad(images, (half,) * 4, mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(padded, taps, groups=groups)
    return F.conv2d(rows, taps.mT, groups=groups).view(images.shape).clamp_(0, 1)


def solarize(images: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert the values from `threshold` up."""
    return torch.where(images >= threshold, 1 - images, images)


def rotate(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Turn square images [B C S S] of any dtype anticlockwise by `quarter_turns` int64 [B] x 90 degrees, exactly."""
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"quarter turns of a batch need square images, got {tuple(images.shape)}")
    turns = (quarter_turns % 4).to(images.device).view(-1, 1, 1, 1)
    images = torch.where(turns >= 2, torch.rot90(images, 2, (2, 3)), images)
    return torch.where(turns % 2 == 1, torch.rot90(images, 1, (2, 3)), images)


def rotate_eighths(images: Tensor, eighth_turns: Tensor) -> Tensor:
    """Turn the centre of square images [B C S S] anticlockwise by `eighth_turns` int64 [B] x 45 degrees, bilinear.

    The result is a central square of side S / sqrt 2, enlarged to S. The square is inside the image at every angle, so
    that no empty corner reveals the angle. All eight angles are interpolated in the same way.
    """
    size = images.shape[2]
    angle = eighth_turns.to(images.device, images.dtype) * (torch.pi / 4)
    cos, sin = angle.cos() / 2**0.5, angle.sin() / 2**0.5
    still = torch.zeros_like(cos)
    grid = torch.stack([torch.stack([cos, -sin, still], 1), torch.stack([sin, cos, still], 1)], 1)  # [B 2 3]
    places = F.affine_grid(grid, [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)


def patch_mask(scores: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Hide a share `ratio` of the patches: those with the highest scores [B L]; of equal scores the first is kept.

    Returns `keep` int64 [B K], the K = int((1 - ratio) L) patches to keep by rising score, and `restore` int64 [B L]:
    `torch.cat([kept, hidden], 1).gather(1, restore)` puts patches sorted by score back into their places, and a patch
    is hidden where `restore >= K`.
    """
    shuffle = scores.argsort(dim=1, stable=True)
    return shuffle[:, : int((1 - ratio) * scores.shape[1])], shuffle.argsort(dim=1)


def block_scores(blocks: Tensor, height: int, width: int) -> Tensor:
    """Scores [B height * width] that hide block after block; `blocks` [B n 4]: (top, left, height, width) in patches.

    A patch scores minus the number of the first block that covers it, -n if none does.
    """
    top, left, tall, wide = (x[..., None] for x in blocks.unbind(2))  # [B n 1]
    row, column = (torch.arange(n, device=blocks.device) for n in (height, width))
    rows = (row >= top) & (row < top + tall)  # [B n height]
    columns = (column >= left) & (column < left + wide)
    covered = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # [B n L]
    none = covered.new_ones(len(blocks), 1, height * width)
    return -torch.cat([covered, none], 1).int().argmax(dim=1).to(torch.float32)


def grid_scores(height: int, width: int) -> Tensor:
    """Scores [height * width] that keep a regular grid: every second patch of every second row, then the diagonal ones.

    The first quarter is every second patch of every second row, the first half a chequerboard, and so on at finer
    and coarser steps: the threshold matrix of ordered dithering (Bayer 1973).
    """
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    scores = torch.zeros(height, width, dtype=torch.int64)
    for bit in range(max(height, width).bit_length()):
        r, c = (row >> bit) & 1, (column >> bit) & 1
        scores = scores * 4 + ((r ^ c) * 2 + r)  # (0, 0), (1, 1), (0, 1), (1, 0)
    return scores.flatten().float()
