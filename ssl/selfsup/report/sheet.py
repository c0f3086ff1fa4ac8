"""A picture of what a method sees: a few images and their views, drawn again from three numbers."""

import io
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfsup.data.loader import Split
from selfsup.draw import Draw
from selfsup.task import Task
from selfsup.views.image.recipe import centre_view

IMAGES, MOST_VIEWS, TILE = 8, 8, 64


def pictures(views: Any, size: int) -> Iterator[Tensor]:
    """Every tensor in `views` that is a batch of images [n 3 S S]."""
    if isinstance(views, Tensor):
        if views.ndim == 4 and views.shape[1] == 3 and views.shape[3] <= size:
            yield views
    elif isinstance(views, list | tuple):
        for part in views:
            yield from pictures(part, size)


def padded(images: Tensor, size: int) -> Tensor:
    """Smaller views, such as local crops, in the middle of a white square. [n 3 s s] -> [n 3 S S]"""
    before = (size - images.shape[-1]) // 2
    after = size - images.shape[-1] - before
    return F.pad(images, (before, after, before, after), value=1.0)


@torch.no_grad()
def views_sheet(task: Task, split: Split, size: int, seed: int) -> bytes:
    """A PNG with one column per image: the image on top, below it the views that `task` makes of it in epoch 0."""
    ids = torch.linspace(0, split.samples - 1, min(IMAGES, split.samples)).long()  # shards are sorted by class
    batch = split.gather(ids)
    rows = [centre_view(batch, size)]
    for images in pictures(task.views(batch, Draw(seed, 0, ids)), size):
        rows += images.split(len(ids))
    sheet = torch.stack([padded(row, size) for row in rows[: 1 + MOST_VIEWS]]).clamp(0, 1)  # [R n 3 S S]
    r, n, _, height, width = sheet.shape
    pixels = sheet.permute(0, 3, 1, 4, 2).reshape(r * height, n * width, 3).mul(255).round().byte()
    scale = max(1, TILE // size)
    picture = Image.fromarray(pixels.numpy())
    buffer = io.BytesIO()
    picture.resize((n * width * scale, r * height * scale), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()
