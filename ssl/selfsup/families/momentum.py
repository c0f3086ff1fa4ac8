"""Two views of an image, one of which goes through a momentum encoder."""

import torch
from torch import Tensor, nn

from selfsup.families.two_views import Siamese
from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.params import HeadParams, Pair
from selfsup.task import Facts, Progress, Tensors


class Momentum(Siamese):
    """The query encoder learns by gradient; the key encoder, which makes the targets, is its slowly moving average.

    He et al. 2020, arXiv:1911.05722, equation 2. `momentum` is m at the first step and after the last. Queries and
    keys take separate forward passes, so that each view has its own batch norm statistics. `embed` returns them as `q`
    and `k`, [B D]. The query encoder is exported and probed, as in the papers.
    """

    def __init__(self, facts: Facts, projector: HeadParams, momentum: Pair, norm_output: bool = False):
        super().__init__(facts, projector, norm_output)
        self.target = nn.ModuleList([target_of(self.backbone), target_of(self.projector)])
        self.momentum = momentum

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:  # [B 3 S S] -> [B D]
        backbone, projector = self.target
        return projector(backbone(view)["pooled"])

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        query, key = views
        return {"q": self.projected(query), "k": self.keys(key)}

    def m(self, progress: Progress) -> float:
        return cosine_momentum(self.momentum, progress.fraction)

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        for target, online in zip(self.target, (self.backbone, self.projector), strict=True):
            ema_update(target, online, self.m(progress))
