"""Debiased contrastive learning: some negatives are of the anchor's own class, so their share is taken off.

Chuang et al. 2020, "Debiased Contrastive Learning", arXiv:2007.00224; equation 8 with one positive (M = 1).
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import debiased, over_anchors
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # t
    tau_plus: Annotated[float, Field(ge=0, lt=1)]  # chance that a negative is of the anchor's class; 0: SimCLR
    projector: HeadParams


class Debiased(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)
        t = self.params.temperature
        loss = over_anchors(partial(debiased, tau=t, tau_plus=self.params.tau_plus), a, b, t)
        return Output(loss, embeddings=(a.detach(), b.detach()))
