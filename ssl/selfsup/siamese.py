"""What many methods have in common: two views of an image through one backbone, and its momentum encoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.nn.heads import mlp
from selfsup.params import HeadParams, Pair
from selfsup.task import Batch, Facts, Progress, Task
from selfsup.views.draw import Draw
from selfsup.views.recipe import two_views


class Siamese(Task):
    """z = g(f(view)) for two views; a method adds the loss. `embed` gives both, [B D] each.

    Both views go through the networks together, so that batch norm's statistics are of all 2N views, as SimCLR and the
    methods after it have them. A method with statistics for each view gives an `embed` of its own, with `projected`.
    """

    def __init__(self, facts: Facts, projector: HeadParams, norm_output: bool = False):
        super().__init__()
        self.recipe, self.size = facts.views, facts.image_size
        self.backbone = facts.backbone()  # f
        self.projector = mlp(self.backbone.width, projector, norm_output)  # g, which is thrown away after training
        self.width = projector.out if projector.layers else self.backbone.width

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return two_views(batch, draw, self.recipe, self.size)

    def projected(self, images: Tensor) -> Tensor:  # [n 3 S S] -> [n D]
        """z of images whose batch norm statistics are their own."""
        return self.projector(self.backbone(images)["pooled"])

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Sequence[Tensor]:
        return self.projected(torch.cat(views)).chunk(2)


class Momentum(Siamese):
    """The query encoder learns by gradient; the key encoder, which makes the targets, is its slowly moving average.

    He et al. 2020, arXiv:1911.05722, equation 2. `momentum` is m at the first step and after the last. Queries and
    keys are forwards of their own, so that each view has its own batch norm statistics. The query encoder is the one
    that is exported and probed, as in the papers.
    """

    def __init__(self, facts: Facts, projector: HeadParams, momentum: Pair, norm_output: bool = False):
        super().__init__(facts, projector, norm_output)
        self.target = nn.ModuleList([target_of(self.backbone), target_of(self.projector)])
        self.momentum = momentum

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """The query's view, the key's, and the samples' places in the global batch, int64 [B]."""
        query, key = two_views(batch, draw, self.recipe, self.size)
        return query, key, draw.place().to(query.device, non_blocking=True)

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:  # [B 3 S S] -> [B D]
        backbone, projector = self.target
        return projector(backbone(view)["pooled"])

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Sequence[Tensor]:
        query, key, place = views
        return self.projected(query), self.keys(key), place

    def m(self, progress: Progress) -> float:
        return cosine_momentum(self.momentum, progress.fraction)

    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        for target, online in zip(self.target, (self.backbone, self.projector), strict=True):
            ema_update(target, online, self.m(progress))


def places(features: Mapping[str, Tensor], prefix: int) -> Tensor:  # -> [B L C]
    """The feature map, or a transformer's tokens less the `prefix` that stand for no place."""
    return features["map"].flatten(2).mT if "map" in features else features["tokens"][:, prefix:]
