"""Colours of whole batches with one number per sample: pure functions, no randomness, any device.

Images are floats [B 3 H W] in 0..1; the dtype (float32 or float64) is kept. Each operation equals torchvision's of the
same name at the same numbers up to rounding, sample by sample; `out` may be the images themselves. `matrix_jitter` is
a faster approximation of `colour_jitter`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # grey value of red, green and blue (ITU-R BT.601)


def to_grey(images: Tensor) -> Tensor:
    """Luma in every channel."""
    return _luma(images).repeat(1, 3, 1, 1)


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

    `factors` [B 4] are the four operations' numbers; `order` int64 [B n] lists the operations of each sample in their
    order (0..3: brightness to hue; 4: none). Keep `order` on the CPU: a GPU then need not wait for it.
    """
    lies = order.argsort(dim=0, stable=True)  # [B n]: the sample at each position after sorting by operation
    found = lies.argsort(dim=0)  # [B n]: the position of each sample
    moves = torch.cat([lies[:, :1], found[:, :-1].gather(0, lies[:, 1:]), found[:, -1:]], 1)
    moves = moves.T.contiguous().to(images.device, non_blocking=True)
    counts = (order[:, :, None] == torch.arange(NO_OPERATION + 1, device=order.device)).sum(0).tolist()
    own = factors[lies.T.to(images.device, non_blocking=True)]  # [n B 4]
    spare = (torch.empty_like(images), torch.empty_like(images))  # allocation is slow on a CPU: two buffers in turn
    for step, numbers in enumerate(own):
        images = torch.index_select(images, 0, moves[step], out=spare[step % 2])
        groups = zip(COLOUR_OPERATIONS, images.split(counts[step]), numbers.split(counts[step]), strict=False)
        for i, (operation, group, factor) in enumerate(groups):
            if len(group):
                operation(group, factor[:, i], out=group)
    return images.index_select(0, moves[-1])


@functools.cache
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of luma [3], and matrices [3 3]: a + b cos t + c sin t turns the hue by t, at equal luma.

    The turn takes place in the plane in which red, green and blue are a third of a turn apart. Cached, because copying
    the constants to a GPU would wait for it.
    """
    root = 0.75**0.5
    axes = torch.tensor([LUMA, (1, -0.5, -0.5), (0, root, -root)], dtype=torch.float64)
    back = axes.inverse()
    quarter = torch.tensor([[0, -1], [1, 0]], dtype=torch.float64)
    parts = (axes[0], back[:, :1] @ axes[:1], back[:, 1:] @ axes[1:], back[:, 1:] @ quarter @ axes[1:])
    luma, fixed, cos, sin = (part.to(device, dtype) for part in parts)
    return luma, fixed, cos, sin


def matrix_jitter(images: Tensor, factors: Tensor, grey: Tensor) -> Tensor:
    """`colour_jitter` and then, where `grey` (bool [B]), `to_grey`, as one affine map of the colours of each image.

    Differs from the two in two ways: values are clamped to 0..1 once, at the end, and the hue turns at equal luma and
    chroma instead of equal HSV value and saturation. The operations therefore commute and need no order. `factors`
    [B 4] are neutral (1, 1, 1, 0) where an operation is off. All arguments are on the images' device.
    """
    luma, fixed, cos, sin = _constants(images.dtype, images.device)
    bright, contrasting, saturated, turns = factors.to(images.dtype)[:, :, None, None].unbind(1)  # [B 1 1]
    to_luma = luma.expand(3, 3)
    angle = turns * (2 * torch.pi)
    colours = torch.lerp(to_luma, fixed + angle.cos() * cos + angle.sin() * sin, saturated)  # [B 3 3]
    colours = torch.where(grey[:, None, None], to_luma @ colours, colours)
    mean = to_luma @ (colours @ images.mean(dim=(2, 3))[:, :, None])  # [B 3 1], which contrast moves away from
    made = torch.baddbmm(bright * (1 - contrasting) * mean, bright * contrasting * colours, images.flatten(2))
    return made.view(images.shape).clamp_(0, 1)
