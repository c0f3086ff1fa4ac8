"""Image operations on whole batches with one number per sample: pure functions, no randomness, any device.

Images are floats [B 3 H W] in 0..1 unless said otherwise; the dtype (float32 or float64) is kept, gradients are not.
Each operation equals torchvision's of the same name at the same numbers up to rounding, sample by sample. `out` may be
the images themselves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MATRIX_PIXELS = 64 * 64  # on a CPU, multiplying larger images by mostly zeros costs more than a call per image
LUMA = (0.2989, 0.587, 0.114)  # grey value of red, green and blue (ITU-R BT.601)


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in 0..1; floats are returned as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


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


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it to a square, antialiased bilinear: [B 3 H W] -> float [B 3 size size].

    Images are uint8 in 0..255 or floats in 0..1. `boxes` int64 [B 4] are (top, left, height, width) in pixels, inside
    the image; pixels outside them have no say. `flip` (bool [B]) mirrors left and right.
    """
    batch, channels, height, width = images.shape
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    flip = torch.zeros(batch, dtype=torch.bool, device=images.device) if flip is None else flip
    if images.device.type == "cpu" and height * width > MATRIX_PIXELS:
        views = torch.empty(batch, channels, size, size, dtype=dtype)
        for view, image, (top, left, tall, wide), mirror in zip(
            views, images, boxes.tolist(), flip.tolist(), strict=True
        ):
            crop = image[None, :, top : top + tall, left : left + wide].to(dtype)
            resized = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
            view.copy_(resized.flip(2) if mirror else resized)
        return (views.div_(255) if images.dtype == torch.uint8 else views).clamp_(0, 1)
    top, left, tall, wide = boxes.unbind(1)
    rows = resize_weights(top, tall, height, size, dtype, torch.zeros_like(flip))  # [B size H]
    columns = resize_weights(left, wide, width, size, dtype, flip)  # [B size W]
    if images.dtype == torch.uint8:
        columns.div_(255)
    lines = images.to(dtype).reshape(batch, channels * height, width) @ columns.mT  # [B 3H size]
    return (rows[:, None] @ lines.view(batch, channels, height, size)).clamp_(0, 1)  # rounding alone exceeds it


def to_grey(images: Tensor) -> Tensor:
    """Luma in every channel."""
    return _luma(images).expand_as(images).contiguous()


def _luma(images: Tensor) -> Tensor:
    """[B 3 H W] -> [B 1 H W]."""
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _column(numbers: Tensor, images: Tensor) -> Tensor:
    """One number per sample as [B 1 1 1], in the images' dtype."""
    return numbers.to(images.dtype).view(-1, 1, 1, 1)


def brightness(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply by `factor` [B] >= 0; 1 changes nothing."""
    return torch.mul(images, _column(factor, images), out=out).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Move away from the mean luma of the image by `factor` [B] >= 0; 1 changes nothing, 0 gives a flat image."""
    mean = _luma(images.mean(dim=(2, 3), keepdim=True))  # [B 1 1 1]
    factor = _column(factor, images)
    return torch.mul(images, factor, out=out).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Move away from the pixel's luma by `factor` [B] >= 0; 1 changes nothing, 0 gives a grey image."""
    return torch.lerp(_luma(images), images, _column(factor, images), out=out).clamp_(0, 1)


def hue(images: Tensor, turns: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue by `turns` [B], in -1/2..1/2 of the colour circle, at equal value and saturation (HSV)."""
    red, green, blue = images.split(1, dim=1)  # [B 1 H W]
    low = images.amin(dim=1, keepdim=True)
    chroma = images.amax(dim=1, keepdim=True).sub_(low)
    # with channels scaled to 0..1 the unsigned hue is (1 + g + b - r) / 6 turns on all six sides of the colour hexagon
    side = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=torch.finfo(images.dtype).tiny)).add_(1).div_(6)
    angle = side.copysign_(green - blue).add_(_column(turns, images))
    primaries = torch.arange(3, dtype=images.dtype, device=images.device).view(1, 3, 1, 1) / 3
    away = angle - primaries  # [B 3 H W], turns from each primary
    away.sub_(away.round()).abs_().clamp_(1 / 6, 1 / 3)  # a channel is full within 1/6 of a turn, empty beyond 1/3
    return torch.addcmul(low.add_(chroma, alpha=2), chroma, away, value=-6, out=out).clamp_(0, 1)


COLOUR_OPERATIONS = (brightness, contrast, saturation, hue)
NO_OPERATION = len(COLOUR_OPERATIONS)


def colour_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order.

    `factors` [B 4] are the four operations' numbers; `order` int64 [B n] says which operation (0..3, in that order; 4:
    none) a sample undergoes first, second, ... `order` may stay on the CPU, which spares a GPU's queue a wait.
    """
    place = torch.arange(len(images), device=order.device)  # which sample lies where
    spare = (torch.empty_like(images), torch.empty_like(images))  # fresh memory is dear on a CPU: two buffers in turn
    for step, codes in enumerate(order.unbind(1)):
        move = codes[place].argsort(stable=True)
        place = place[move]
        images = torch.index_select(images, 0, move.to(images.device, non_blocking=True), out=spare[step % 2])
        own = factors.index_select(0, place.to(images.device, non_blocking=True))
        counts = torch.bincount(codes, minlength=NO_OPERATION + 1).tolist()
        groups = zip(COLOUR_OPERATIONS, images.split(counts), own.split(counts), strict=False)
        for i, (operation, group, numbers) in enumerate(groups):
            operation(group, numbers[:, i], out=group)
    return images.index_select(0, place.argsort().to(images.device, non_blocking=True))


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Convolve with a Gaussian of `sigma` [B] > 0 pixels, cut to `kernel` (odd) pixels, the image mirrored at its rim.

    The kernel is shorter than twice the image's sides.
    """
    half = kernel // 2
    distance = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    taps = torch.softmax(-0.5 * (distance / sigma.to(images.dtype)[:, None]) ** 2, dim=1)  # [B kernel], sum 1
    rows, columns = (_band(taps, side) for side in images.shape[2:])
    return (rows[:, None] @ (images.flatten(1, 2) @ columns.mT).view(images.shape)).clamp_(0, 1)


def _band(taps: Tensor, size: int) -> Tensor:
    """The convolution of a mirrored axis of `size` pixels with `taps` [B k], as matrices [B size size]."""
    half = taps.shape[1] // 2
    pixels = torch.eye(size, device=taps.device, dtype=taps.dtype)
    steps = F.pad(pixels, (half, half), mode="reflect").unfold(1, size, 1)  # [in k out]: who is t steps from whom
    return (taps @ steps.permute(1, 2, 0).reshape(taps.shape[1], -1)).view(-1, size, size)


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

    Shown is a square of side S / sqrt 2, enlarged to S: it lies inside the image at every angle, so that no empty
    corner tells the angle. All eight angles are interpolated alike.
    """
    size = images.shape[2]
    angle = eighth_turns.to(images.device, images.dtype) * (torch.pi / 4)
    cos, sin = angle.cos() / 2**0.5, angle.sin() / 2**0.5
    still = torch.zeros_like(cos)
    grid = torch.stack([torch.stack([cos, -sin, still], 1), torch.stack([sin, cos, still], 1)], 1)  # [B 2 3]
    places = F.affine_grid(grid, [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)


def patch_mask(scores: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Hide a share `ratio` of the patches: those of the highest scores [B L], the first of equals being kept.

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
