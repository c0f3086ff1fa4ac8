"""Two global views of every image and smaller local crops through one backbone."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from selfsup.draw import Draw
from selfsup.errors import KnobError
from selfsup.nn.precision import full_precision
from selfsup.params import CropsParams
from selfsup.task import Batch, Facts, Task
from selfsup.views.image.recipe import multi_crop


class MultiCrop(Task):
    """Two global views of every image and smaller local ones through one backbone; a method adds heads and the loss.

    Raises `KnobError` when local crops are larger than global ones, or of a size that the backbone does not take.
    """

    def __init__(self, facts: Facts, crops: CropsParams):
        super().__init__()
        self.recipe, self.size, self.crops = facts.views, facts.image_size, crops
        self.backbone = facts.backbone()
        if crops.count == 0:
            return
        if crops.size > facts.image_size:
            most = f"data.image.image_size, {facts.image_size}"
            raise KnobError("crops.size", f"{crops.size} px is more than {most}; lower it")
        if crops.scale[1] > facts.views.crop_scale[1]:
            high = facts.views.crop_scale[1]
            raise KnobError("crops.scale", f"local crops up to {crops.scale[1]} of the image are larger than the "
                                           f"global ones, {high} (views.crop_scale); lower it")  # fmt: skip
        try:
            self.backbone.admit(crops.size)
        except ValueError as error:
            raise KnobError("crops.size", f"{error}; use {facts.image_size}, or a count of 0") from None

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return multi_crop(batch, draw, self.recipe, self.size, self.crops)


def pooled(backbone: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """The features of each view [B width], by one call of the backbone for all views of a size."""
    groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
    return [x for group in groups for x in backbone(torch.cat(group))["pooled"].chunk(len(group))]


def by_sample(x: Tensor, views: int) -> Tensor:  # [V*B ...], view after view -> [B V ...]
    """A row per sample, as `embed` gives it, of what came from one call for all views."""
    return x.unflatten(0, (views, -1)).transpose(0, 1)


def by_view(x: Tensor) -> Tensor:  # [B V ...] -> [V B ...], contiguous
    """The views one after the other, as they came from the network."""
    return x.transpose(0, 1).contiguous()


@full_precision
def cross_views(scores: Sequence[Tensor], targets: Sequence[Tensor], tau: float) -> Tensor:
    """Cross-entropy of each target with the predictions from every other view, mean over pairs of views and batch.

    L = -mean over views t != v and samples of sum_k q_t[k] log softmax(s_v / tau)[k]
    Scores s of V views, those with targets first, and probabilities q: V x [B K], T x [B K] -> []
    """
    log_p = [(s / tau).log_softmax(1) for s in scores]
    terms = [-(q * log_p[v]).sum(1).mean() for i, q in enumerate(targets) for v in range(len(scores)) if v != i]
    return torch.stack(terms).mean()
