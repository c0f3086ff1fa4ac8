"""Barlow Twins: the views' dimensions agree with themselves and are independent of one another.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv:2103.03230.
L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2 (equation 1), C being the cross-correlation of both views'
embeddings over the global batch (equation 2); the variance is biased with eps 1e-5, as in batch norm. Each view goes
through the networks by itself, as in the paper, so that batch norm's statistics are each view's own.
Differences: the whole loss is multiplied by `scale`, so that rates are those of other methods; biases and norms have
the rate of the weights, where the paper gives them a lower one, to have one rate for a block; the projector is smaller,
for small images; its last layer has a bias, which the cross-correlation takes away.
Expect (CIFAR-10, ResNet-18, 1000 epochs, linear): 92 %.
"""

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    redundancy: NonNegativeFloat  # lambda
    scale: PositiveFloat  # of the whole loss
    projector: HeadParams


def cross_correlation(a: Tensor, b: Tensor) -> Tensor:  # [N D], [N D] -> [D D]
    """Equation 2, over the batch."""
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b))
    return a.T @ b / len(a)


def barlow(c: Tensor, redundancy: float) -> Tensor:  # [D D] -> []
    """Equation 1: invariance plus lambda times redundancy."""
    on = c.diagonal()
    return (1 - on).square().sum() + redundancy * (c.square().sum() - on.square().sum())


class BarlowTwins(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Sequence[Tensor]:
        return [self.projected(view) for view in views]  # batch norm's statistics are each view's own

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z if z.dtype == torch.float64 else z.float()) for z in embeddings)
        with torch.autocast(a.device.type, enabled=False):
            loss = self.params.scale * barlow(cross_correlation(a, b), self.params.redundancy)
        return Output(loss, embeddings=(a.detach(), b.detach()))
