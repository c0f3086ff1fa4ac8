"""Alignment and uniformity: what InfoNCE asks for in the limit, asked for directly.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv:2005.10242; section 4.1, uniformity being the mean of both views'.
"""

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.hypersphere import alignment, uniformity
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    alpha: PositiveFloat  # power of the distance of positives
    t: PositiveFloat  # sharpness of the Gaussian potential
    align_weight: NonNegativeFloat
    uniform_weight: NonNegativeFloat
    projector: HeadParams


class AlignUniform(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)
        x, y = unit(a), unit(b)
        with torch.autocast(x.device.type, enabled=False):
            align = alignment(x, y, self.params.alpha)
            uniform = (uniformity(x, self.params.t) + uniformity(y, self.params.t)) / 2
        loss = self.params.align_weight * align + self.params.uniform_weight * uniform
        return Output(loss, embeddings=(a.detach(), b.detach()))
