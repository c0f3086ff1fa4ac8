"""A picture of what a method sees: a few samples and their views, drawn again from three numbers."""

import io

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfsup import views
from selfsup.data.loader import Split
from selfsup.draw import Draw
from selfsup.task import Task

SAMPLES, MOST_VIEWS, TILE = 8, 8, 64


def padded(images: Tensor, size: int) -> Tensor:
    """Smaller views, such as local crops, in the middle of a white square. [n 3 s s] -> [n 3 S S]"""
    before = (size - images.shape[-1]) // 2
    after = size - images.shape[-1] - before
    return F.pad(images, (before, after, before, after), value=1.0)


@torch.no_grad()
def views_sheet(task: Task, split: Split, seed: int) -> bytes | None:
    """A PNG with one column per sample: the sample on top, below it the views that `task` makes of it in epoch 0.

    None for a kind of data whose views are no pictures.
    """
    kind, data = views.find(split.kind), split.data
    ids = torch.linspace(0, split.samples - 1, min(SAMPLES, split.samples)).long()  # shards are sorted by class
    batch = split.gather(ids)
    rows: list[Tensor] = list(kind.pictures(kind.plain(batch, data), data))
    if not rows:
        return None
    size = rows[0].shape[-1]
    for pictures in kind.pictures(task.views(batch, Draw(seed, 0, ids)), data):
        rows += pictures.split(len(ids))
    sheet = torch.stack([padded(row, size) for row in rows[: 1 + MOST_VIEWS]]).clamp(0, 1)  # [R n 3 S S]
    r, n, _, height, width = sheet.shape
    pixels = sheet.permute(0, 3, 1, 4, 2).reshape(r * height, n * width, 3).mul(255).round().byte()
    scale = max(1, TILE // size)
    picture = Image.fromarray(pixels.numpy())
    buffer = io.BytesIO()
    picture.resize((n * width * scale, r * height * scale), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()
