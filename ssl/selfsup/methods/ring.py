"""Ring: negatives neither too easy nor, being perhaps of the same class, too hard (conditional NCE).

Wu et al. 2021, "Conditional Negative Sampling for Contrastive Learning of Visual Representations", arXiv:2010.02037.
Of all negatives the nearest `outer` share is kept, and of those the nearest `inner` share dropped; as in the paper both
are rounded down to whole negatives, of which at least one is kept. `outer` falls linearly from 1 over the first
`anneal` share of the run.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import info_nce, over_anchors, ring
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    outer: Annotated[float, Field(gt=0, le=1)]  # w_u at the end
    inner: Annotated[float, Field(ge=0, lt=1)]  # w_l, of the outer share
    anneal: Annotated[float, Field(ge=0, le=1)]  # share of the run in which the outer share falls
    projector: HeadParams


class Ring(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)
        knobs = self.params
        fallen = progress.of(knobs.anneal)

        def within(positive: Tensor, negatives: Tensor) -> Tensor:  # [2]: the loss, the mean cosine of what is kept
            kept = ring(negatives, 1 + (knobs.outer - 1) * fallen, knobs.inner)
            return torch.stack([info_nce(positive, kept), kept[kept.isfinite()].mean().detach() * knobs.temperature])

        loss, mean = over_anchors(within, a, b, knobs.temperature)
        logs = {"negative_similarity": mean.detach()}  # rises as the ring closes in
        return Output(loss, logs=logs, embeddings=(a.detach(), b.detach()))
