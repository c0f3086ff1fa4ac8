"""The 15 common corruptions in 5 severities, made on the fly, and three changes of geometry.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261, section 4.1 and appendix B describe what each corruption is. The severities are those that are
documented for CIFAR-10-C, of images of 32 px. Lengths in pixels grow with the side S of larger images, by S / 32, and
stay as they are for smaller ones, where they would vanish.

Four differ from the original. Frost is drawn by ridged noise instead of six photographs of frost. Glass blur moves
every pixel by a random displacement instead of swapping neighbours one after the other. Fog's texture is the sum of
octaves of smooth noise instead of diamond-square. Motion blur extends to both sides of a pixel instead of to one.

A corruption maps images [B 3 S S] in 0..1, the samples' randomness and one of SEVERITIES to images. All randomness is a
function of (seed, sample id, corruption, severity), so it does not depend on the batch.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.draw import Draw

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 32  # pixels, for which lengths are documented
LEVELS = 256  # of an 8-bit image


def corrupted(images: Tensor, name: str, severity: int, seed: int, ids: Tensor) -> Tensor:
    """The corruption `name` of `images` [B 3 S S], of the samples `ids` int64 [B]. Severity 0 changes nothing."""
    if severity == 0:
        return images
    draw = Draw(seed, severity, ids.to(images.device)).fork(name)
    return CORRUPTIONS[name](images, draw, severity - 1).clamp(0, 1)


def moved(images: Tensor, kind: str, amount: float, seed: int, ids: Tensor) -> Tensor:
    """`images` [B 3 S S] turned by `amount` degrees, scaled by the factor `amount`, or shifted by that share of a side.

    The sense of a rotation and the direction of a shift are drawn for each sample. What comes in from outside is
    mirrored. A rotation or shift by 0 and a scale of 1 change nothing.
    """
    if amount == (1 if kind == "scale" else 0):
        return images
    draw = Draw(seed, 0, ids.to(images.device)).fork(kind)
    turn, x, y, zoom = (torch.zeros(len(images), device=images.device) for _ in range(4))
    zoom += 1
    if kind == "rotation":
        turn += math.radians(amount) * (2.0 * draw.bernoulli("sense", 0.5) - 1)
    elif kind == "scale":
        zoom /= amount
    else:
        angle = draw.uniform("direction", high=2 * math.pi)
        x, y = 2 * amount * angle.cos(), 2 * amount * angle.sin()  # the side is 2 in the coordinates of the grid
    affine = torch.stack(
        [
            torch.stack([zoom * turn.cos(), -zoom * turn.sin(), x], dim=1),
            torch.stack([zoom * turn.sin(), zoom * turn.cos(), y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def normal(draw: Draw, use: str, *shape: int) -> Tensor:
    """Standard normal float32 [B, *shape], by Box & Muller 1958 from uniform numbers."""
    radius = (-2 * torch.log1p(-draw.uniform(f"{use} radius", *shape))).sqrt()
    return radius * (2 * math.pi * draw.uniform(f"{use} angle", *shape)).cos()


def gaussian_noise(x: Tensor, draw: Draw, level: int) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * normal(draw, "noise", *x.shape[1:])


def shot_noise(x: Tensor, draw: Draw, level: int) -> Tensor:
    """Poisson noise of light: x' = Poisson(c x) / c with x in 8 bits, by the inverse of its distribution."""
    rate = (500, 250, 100, 75, 50)[level]
    steps = _poisson(rate).to(x)
    levels = (x * (LEVELS - 1)).round().long().flatten()
    uniform = draw.uniform("noise", *x.shape[1:]).flatten()
    order = levels.argsort(stable=True)
    counts = torch.empty_like(uniform)
    for value, part in enumerate(order.split(torch.bincount(levels, minlength=LEVELS).tolist())):
        counts[part] = torch.searchsorted(steps[value], uniform[part], right=True).to(counts)
    return counts.view_as(x) / rate


@functools.cache
def _poisson(rate: float) -> Tensor:
    """P(count <= k) of every value in 8 bits, float32 [256 k], whose mean count is `rate` times the value in 0..1."""
    from scipy.stats import poisson

    mean = rate * np.arange(LEVELS) / (LEVELS - 1)
    most = int(rate + 8 * math.sqrt(rate) + 8)
    return torch.from_numpy(poisson.cdf(np.arange(most)[None], mean[:, None])).float()


def impulse_noise(x: Tensor, draw: Draw, level: int) -> Tensor:
    """Salt and pepper: a share of all values becomes 0 or 1."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    hit, salt = draw.bernoulli("hit", share, *x.shape[1:]), draw.bernoulli("salt", 0.5, *x.shape[1:])
    return torch.where(hit, salt.to(x), x)


def defocus_blur(x: Tensor, draw: Draw, level: int) -> Tensor:  # noqa: ARG001 nothing is drawn
    """A disc as the point spread function, with its edge smoothed."""
    radius, smooth = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[level]
    scale, fine = _scale(x), 8
    half = math.ceil(radius * scale) + 1
    place = (torch.arange((2 * half + 1) * fine, dtype=torch.float32) + 0.5) / fine - half - 0.5
    inside = (place[:, None] ** 2 + place[None] ** 2 <= (radius * scale) ** 2).float()
    disc = F.avg_pool2d(inside[None, None], fine)[0, 0]  # the share of each pixel that lies inside
    return _gaussian_blur(_filtered(x, (disc / disc.sum()).to(x)), smooth * scale)


def glass_blur(x: Tensor, draw: Draw, level: int) -> Tensor:
    """Frosted glass: pixels move by at most `most` places, between two blurs."""
    sigma, most, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[level]
    size, scale = x.shape[-1], _scale(x)
    x, most = _gaussian_blur(x, sigma * scale), max(1, round(most * scale))
    row, column = torch.meshgrid(*[torch.arange(size, device=x.device)] * 2, indexing="ij")
    for number in range(rounds):
        step = draw.integers(f"step {number}", 2 * most + 1, 2, size, size) - most
        source = (row + step[:, 0]).clamp(0, size - 1) * size + (column + step[:, 1]).clamp(0, size - 1)
        x = x.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, 3, -1)).view_as(x)
    return _gaussian_blur(x, sigma * scale)


def motion_blur(x: Tensor, draw: Draw, level: int) -> Tensor:
    """The camera moves along a line, in a direction within 45 degrees of the horizontal."""
    length, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[level]
    return _moving(x, draw.uniform("angle", low=-math.pi / 4, high=math.pi / 4), length, sigma)


def zoom_blur(x: Tensor, draw: Draw, level: int) -> Tensor:  # noqa: ARG001 nothing is drawn
    """The camera comes nearer: the mean of the image and of the image enlarged in steps of 1 %."""
    steps = (6, 11, 16, 21, 26)[level]
    return (x + sum(_enlarged(x, 1 + 0.01 * step) for step in range(steps))) / (steps + 1)


def snow(x: Tensor, draw: Draw, level: int) -> Tensor:
    """Flakes: noise enlarged, cut off below a threshold, falling; the image itself is whitened."""
    mean, spread, zoom, threshold, length, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    flakes = _enlarged(mean + spread * normal(draw, "flakes", 1, *x.shape[2:]), zoom * _scale(x))
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angle = draw.uniform("angle", low=-0.75 * math.pi, high=-0.25 * math.pi)
    flakes = _moving(flakes, angle, length, sigma)
    white = torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes.rot90(2, (2, 3))


def frost(x: Tensor, draw: Draw, level: int) -> Tensor:
    """Crystals on a pane: ridges of noise, bluish white, over a darkened image."""
    image, crystals = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    ridges = (1 - (2 * plasma(draw, x.shape[-1], 1.5) - 1).abs()) ** 3
    tint = torch.tensor([0.85, 0.95, 1.0], device=x.device).view(3, 1, 1)
    return image * x + crystals * ridges * tint


def fog(x: Tensor, draw: Draw, level: int) -> Tensor:
    """Clouds in front of the image, whose brightest point stays as bright."""
    amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * plasma(draw, x.shape[-1], decay)) * top / (top + amount).clamp(min=1e-6)


def brightness(x: Tensor, draw: Draw, level: int) -> Tensor:  # noqa: ARG001 nothing is drawn
    """The value of HSV rises, hue and saturation stay; black becomes grey."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-6), raised)


def contrast(x: Tensor, draw: Draw, level: int) -> Tensor:  # noqa: ARG001 nothing is drawn
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)


def elastic_transform(x: Tensor, draw: Draw, level: int) -> Tensor:
    """The image is stretched: a smooth random field of displacements on top of a small random affine map."""
    fields = (0.0, 0.0), (0.05, 0.2), (0.08, 0.06), (0.1, 0.04), (0.1, 0.03)  # shares of the side
    (far, sigma), corner = fields[level], (0.08, 0.07, 0.06, 0.05, 0.03)[level]
    size = x.shape[-1]
    # three points, a third of the side from the middle, move by up to `corner` of the side; the side is 2 here
    corners = torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=x.dtype, device=x.device) * 2 / 3
    target = corners + 2 * corner * draw.uniform("corners", 3, 2, low=-1)
    source = torch.cat([corners, torch.ones(3, 1, device=x.device)], dim=1)
    affine = torch.linalg.solve(source.expand(len(x), -1, -1), target).mT  # [B 2 3]
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    if far:
        field = draw.uniform("field", 2, size, size, low=-1)
        grid = grid + 2 * far * _gaussian_blur(field, sigma * size).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def pixelate(x: Tensor, draw: Draw, level: int) -> Tensor:  # noqa: ARG001 nothing is drawn
    """A smaller image by means over boxes, enlarged again by repeating its pixels."""
    size = x.shape[-1]
    small = F.interpolate(x, size=max(1, int(size * (0.95, 0.9, 0.85, 0.75, 0.65)[level])), mode="area")
    return F.interpolate(small, size=size, mode="nearest")


def jpeg_compression(x: Tensor, draw: Draw, level: int) -> Tensor:  # noqa: ARG001 nothing is drawn
    from PIL import Image

    found = np.empty((len(x), *x.shape[2:], 3), np.uint8)
    for place, pixels in enumerate((255 * x).round().byte().permute(0, 2, 3, 1).cpu().numpy()):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=(80, 65, 58, 50, 40)[level])
        found[place] = np.asarray(Image.open(file))
    return torch.from_numpy(found).to(x.device).permute(0, 3, 1, 2).to(x) / 255


CORRUPTIONS: dict[str, Callable[[Tensor, Draw, int], Tensor]] = {
    each.__name__: each
    for each in (
        *(gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow),
        *(frost, fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression),
    )
}
"""By name, in the paper's order: noise, blur, weather, digital."""


def plasma(draw: Draw, size: int, decay: float) -> Tensor:
    """Clouds in 0..1, [B 1 S S]: octaves of smooth noise, each `decay` times weaker than the one twice as coarse."""
    total = torch.zeros(len(draw.key), 1, size, size, device=draw.key.device)
    for octave in range(1, max(2, math.ceil(math.log2(size)) + 1)):
        noise = draw.uniform(f"octave {octave}", 1, 2**octave + 1, 2**octave + 1, low=-1)
        total += decay**-octave * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=True)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-6)


def _scale(x: Tensor) -> float:
    """By how much documented lengths grow for these images."""
    return max(1.0, x.shape[-1] / SIDE)


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _enlarged(x: Tensor, factor: float) -> Tensor:
    """The middle of an image, enlarged to its size."""
    if factor == 1:
        return x
    affine = torch.eye(2, 3, device=x.device).div(factor).expand(len(x), -1, -1)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _padded(x: Tensor, rim: int) -> Tensor:
    """`rim` more pixels at each side, mirrored; repeated where the image is too small to mirror."""
    return F.pad(x, (rim,) * 4, mode="reflect" if rim < x.shape[-1] else "replicate")


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel convolved with one kernel [k k], or with one per sample [B k k]; k is odd."""
    size, channels = kernel.shape[-1], x.shape[1]
    weight = kernel.expand(len(x), size, size).repeat_interleave(channels, dim=0)[:, None]
    padded = _padded(x, size // 2).reshape(1, -1, *(side + size - 1 for side in x.shape[2:]))
    return F.conv2d(padded, weight, groups=len(weight)).view_as(x)


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    kernel = _gaussian(sigma).to(x)
    return x if len(kernel) == 1 else _filtered(x, kernel[:, None] * kernel)


@functools.cache
def _gaussian(sigma: float) -> Tensor:
    """Weights that sum to 1, up to four deviations to either side."""
    half = math.ceil(4 * sigma - 0.5) if sigma > 0 else 0
    place = torch.arange(-half, half + 1, dtype=torch.float64)
    weight = torch.exp(-(place**2) / (2 * sigma**2)) if half else torch.ones(1, dtype=torch.float64)
    return (weight / weight.sum()).float()


def _moving(x: Tensor, angle: Tensor, length: float, sigma: float) -> Tensor:
    """Motion blur along `angle` [B], of 2 `length` + 1 points with the weights of a Gaussian, at 32 px."""
    scale = _scale(x)
    half = max(1, round(length * scale))
    steps = torch.arange(-half, half + 1, device=x.device)
    weight = torch.exp(-(steps**2) / (2 * (sigma * scale) ** 2))
    total = torch.zeros_like(x)
    padded = _padded(x, half)
    rows, columns = ((steps[None] * side[:, None]).round().long() + half for side in (angle.sin(), angle.cos()))
    size = torch.arange(x.shape[-1], device=x.device)
    for step in range(len(steps)):
        row, column = rows[:, step, None] + size, columns[:, step, None] + size  # [B S]
        index = (row[:, :, None] * padded.shape[-1] + column[:, None]).flatten(1)  # [B S*S]
        part = padded.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1))
        total += weight[step] * part.view_as(x)
    return total / weight.sum()
