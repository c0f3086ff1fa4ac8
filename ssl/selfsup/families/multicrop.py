"""Two global views of every image and smaller local crops through one backbone."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.params import CropsParams
from selfsup.task import Batch, Facts, Task
from selfsup.views.image.recipe import multi_crop


class MultiCrop(Task):
    """Two global views of every image and smaller local ones through one backbone; a method adds heads and the loss.

    `views` ends with the samples' places in the global batch, int64 [B]. Raises `UserError`
    when local crops are larger than global ones, or of a size that the backbone does not take.
    """

    def __init__(self, facts: Facts, crops: CropsParams, name: str):
        super().__init__()
        self.recipe, self.size, self.crops = facts.views, facts.image_size, crops
        self.backbone = facts.backbone()
        if crops.count == 0:
            return
        where = f"methods.{name}.crops"
        if crops.size > facts.image_size:
            raise UserError(f"{where}.size: {crops.size} px is more than data.image_size, {facts.image_size}; lower it")
        if crops.scale[1] > facts.views.crop_scale[1]:
            high = facts.views.crop_scale[1]
            raise UserError(f"{where}.scale: local crops up to {crops.scale[1]} of the image are larger than the "
                            f"global ones, {high} (views.crop_scale); lower it")  # fmt: skip
        try:
            self.backbone.admit(crops.size)
        except ValueError as error:
            raise UserError(f"{where}.size: {error}; use {facts.image_size}, or a count of 0") from None

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        crops = multi_crop(batch, draw, self.recipe, self.size, self.crops)
        return *crops, draw.place().to(crops[0].device, non_blocking=True)


def pooled(backbone: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """The features of each view [B width], by one call of the backbone for all views of a size."""
    groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
    return [x for group in groups for x in backbone(torch.cat(group))["pooled"].chunk(len(group))]


def cross_views(scores: Sequence[Tensor], targets: Sequence[Tensor], tau: float) -> Tensor:
    """Cross-entropy of each target with the predictions from every other view, mean over pairs of views and batch.

    Scores of V views, those with targets first, and probabilities: V x [B K], T x [B K] -> []
    """
    log_p = [(s / tau).log_softmax(1) for s in scores]
    terms = [-(q * log_p[v]).sum(1).mean() for i, q in enumerate(targets) for v in range(len(scores)) if v != i]
    return torch.stack(terms).mean()
