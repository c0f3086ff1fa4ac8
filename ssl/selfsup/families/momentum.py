"""Two views of an image, one of which goes through a momentum encoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from selfsup.draw import Draw
from selfsup.families.two_views import Siamese
from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.params import HeadParams, Pair
from selfsup.task import Batch, Facts, Progress
from selfsup.views.image.recipe import two_views


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
