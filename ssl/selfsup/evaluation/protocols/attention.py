"""What a network looks at, as pictures of a few test images; there is no figure.

- Attention of the last block of a transformer: of the class token to each patch, per head and as the mean of all heads
  (Caron et al. 2021, arXiv:2104.14294, figure 1). Without a class token: the attention that each patch receives.
- Convolutional attention: the sum over channels of the squared features of each stage (Zagoruyko & Komodakis 2017,
  arXiv:1612.03928, section 3.1, F_sum^2).
- The first principal components of patch features as red, green and blue. The first one of all separates foreground
  from background, and colours are of the foreground alone (Oquab et al. 2023, arXiv:2304.07193, section 7.5).
- The foreground of the first image carried over to the others: a patch is foreground where the most similar patch of
  the first image is.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Strict
from selfsup.draw import epoch_order
from selfsup.evaluation import inside
from selfsup.evaluation.networks import ImageSplits
from selfsup.evaluation.result import Picture, Result

TITLE = "attention"
NEEDS = {"encoder", "images"}
TILE, GAP = 64, 2  # pixels: the smallest side of an image in a picture, and what lies between two
DIM = 0.25  # brightness of what is not foreground


class Params(Strict):
    images: Annotated[int, Field(ge=1, le=64)]  # test images, drawn by the seed


def run(encoder: nn.Module, images: ImageSplits, params: Params, seed: int) -> Result:
    """Pictures with one column per image. Raises `Unfit` for a representation without a network or without places."""
    ids = epoch_order(seed, 0, len(images.test))[: params.images].sort().values
    views = images.test.take(ids)
    features = inside.patches(encoder, views)
    size = max(views.shape[-1], TILE)
    shown = _resized(views, size)
    pictures = {"images": _picture("Test images", [shown], "the test images themselves")}
    seen = inside.attention(encoder, views)
    if seen is not None:
        lines = [_heat(each, shown) for each in seen.unbind(1)]
        pictures["attention"] = _picture("Attention, mean of the heads", [_heat(seen.mean(1), shown)], "attention")
        if len(lines) > 1:
            pictures["heads"] = _picture("Attention, one line per head", lines, "attention of each head")
    maps = inside.read(encoder, views, lambda x: convolutional(x.float()) if x.ndim == 4 else x[..., :0])
    squares = [_heat(each, shown) for each in maps.values() if each.ndim == 3 and each.shape[-1]]
    if squares:
        title = "Convolutional attention, one line per stage"
        pictures["squares"] = _picture(title, squares, "sums of squared features of each stage")
    foreground, colours = components(features)
    coloured = _resized(colours, size)
    pictures["components"] = _picture("Principal components of patches", [coloured], "patch features as colours")
    masks = _resized(carried(features, foreground[0])[:, None].float(), size)
    title = "Foreground of the first image, carried over"
    pictures["carried"] = _picture(
        title, [shown * (DIM + (1 - DIM) * masks)], "patches similar to the first foreground"
    )
    side = features.shape[-1]
    notes = [f"components and foreground are of {side} x {side} patch features"]
    return Result({}, notes=notes, features="of the deepest stage that has places", pictures=pictures)


def convolutional(x: Tensor) -> Tensor:
    """F_sum^2: the sum over channels of the squares. [B C h w] -> [B h w]"""
    return x.square().sum(1)


def components(features: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground bool [B h w] and colours [B 3 h w] in 0..1 of patch `features` [B C h w], black outside of it.

    Foreground is where the first principal component of all patches is positive; its sign is that with which the
    border has the smaller mean. Colours are the first three components of the foreground, each from its smallest value
    to its largest.
    """
    count, _, height, width = features.shape
    patches = features.permute(0, 2, 3, 1).flatten(0, 2).double()  # [B*h*w C]
    first = _principal(patches, 1)[:, 0].view(count, height, width)
    border = torch.ones(height, width, dtype=torch.bool, device=features.device)
    border[1:-1, 1:-1] = False
    if not border.all() and first[:, border].mean() > first[:, ~border].mean():
        first = -first
    foreground = first > 0
    inside_patches = patches[foreground.flatten()]
    colours = torch.zeros(len(patches), 3, dtype=torch.float64, device=features.device)
    if len(inside_patches):
        values = _principal(inside_patches, 3)
        low, high = values.amin(0), values.amax(0)
        colours[foreground.flatten()] = (values - low) / (high - low).clamp(min=1e-12)
    return foreground, colours.view(count, height, width, 3).permute(0, 3, 1, 2).float()


def _principal(x: Tensor, most: int) -> Tensor:
    """The first `most` principal components of the rows of `x` [N C], [N most]; zero where there are fewer.

    The largest weight of each direction is positive, so that the sign is determined.
    """
    centred = x - x.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:most]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    return F.pad(centred @ directions.T, (0, most - len(directions)))


def carried(features: Tensor, mask: Tensor) -> Tensor:
    """The `mask` bool [h w] of the first image, carried over to all, bool [B h w], by `features` [B C h w].

    A patch has the value of the patch of the first image that is most similar by cosine.
    """
    unit = F.normalize(features.flatten(2).float(), dim=1)  # [B C h*w]
    nearest = torch.einsum("cp,bcq->bqp", unit[0], unit).argmax(2)  # [B h*w]
    found = mask.flatten()[nearest].view(len(features), *mask.shape)
    found[0] = mask
    return found


def _resized(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x.float(), size=(size, size), mode="nearest")


def _heat(weights: Tensor, shown: Tensor) -> Tensor:
    """`weights` [B h w] in colours, each image's from its smallest to its largest, [B 3 S S]."""
    import matplotlib as mpl

    low, high = weights.amin((1, 2), keepdim=True), weights.amax((1, 2), keepdim=True)
    scaled = ((weights - low) / (high - low).clamp(min=1e-12)).cpu()
    colours = torch.from_numpy(mpl.colormaps["viridis"](scaled.numpy())[..., :3]).permute(0, 3, 1, 2)
    return _resized(colours, shown.shape[-1]).to(shown.device)


def _picture(title: str, lines: list[Tensor], text: str) -> Picture:
    """Images [B 3 S S] of each line beside each other, lines below each other, on white."""
    tiles = F.pad(torch.stack([line.clamp(0, 1).cpu() for line in lines]), (0, GAP, 0, GAP), value=1.0)
    rows, count, _, height, width = tiles.shape
    pixels = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, count * width, 3)[:-GAP, :-GAP]
    return Picture(title, text, np.ascontiguousarray(pixels.mul(255).round().byte().numpy()))
