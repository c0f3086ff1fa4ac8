"""The simple contrastive loss: no softmax, so that hard negatives count no more than others unless they are chosen.

Wang & Liu 2021, "Understanding the Behaviour of Contrastive Loss", arXiv:2012.09740; equation 6, and with `hard` below
1 equation 10: only the nearest share of the negatives is pushed away.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import over_anchors, ring
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    negative_weight: PositiveFloat  # lambda times the number of negatives
    hard: Annotated[float, Field(gt=0, le=1)]  # share of the negatives, the nearest, that count
    projector: HeadParams


def simple(positive: Tensor, negatives: Tensor, weight: float) -> Tensor:  # [M], [M K] of cosines -> []
    """Equation 6: -s_ii + lambda sum of s_ij, lambda being `weight` over the number of negatives (those not -inf)."""
    counted = negatives.isfinite()
    mean = torch.where(counted, negatives, 0).sum(1) / counted.sum(1)
    return (weight * mean - positive).mean()


class SimpleContrastive(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)

        def hardest(positive: Tensor, negatives: Tensor) -> Tensor:
            return simple(positive, ring(negatives, self.params.hard, 0.0), self.params.negative_weight)

        return Output(over_anchors(hardest, a, b, 1.0), embeddings=(a.detach(), b.detach()))
