"""Views of images."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from selfsup.blocks.image import ImageData
from selfsup.draw import Draw
from selfsup.params import ViewsParams
from selfsup.views.image.recipe import centre_view, crop_view


def plain(batch: Mapping[str, Tensor], data: ImageData) -> Tensor:
    """The largest centred square of every picture, resized. [B 3 S S] in 0..1"""
    return centre_view(batch, data.image_size)


def view(batch: Mapping[str, Tensor], draw: Draw, recipe: ViewsParams, data: ImageData) -> Tensor:
    """One random view of every image: crop and flip only. [B 3 S S] in 0..1"""
    return crop_view(batch, draw, recipe, data.image_size)


def pictures(views: Any, data: ImageData) -> list[Tensor]:
    """Every tensor in `views` that is a batch of images [n 3 s s], s at most `data.image_size`."""
    if isinstance(views, list | tuple):
        return [picture for part in views for picture in pictures(part, data)]
    shown = isinstance(views, Tensor) and views.ndim == 4 and views.shape[1] == 3 and views.shape[3] <= data.image_size
    return [views] if shown else []


def suspicious(batch: Mapping[str, Tensor]) -> str:
    """A sentence where more than half of the images are of one colour, which batch norms make infinite; else empty."""
    images = batch["image"].flatten(2)  # [B 3 S*S]
    plain = int((images.diff(dim=2) == 0).all(2).all(1).sum())
    if plain > len(images) / 2:
        return f"{plain} of the {len(images)} images of the step are of one colour; check the images in data.image.path"
    return ""
