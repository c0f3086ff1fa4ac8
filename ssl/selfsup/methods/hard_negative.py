"""Hard negatives: debiased contrastive learning that dwells on the negatives most like the anchor.

Robinson et al. 2021, "Contrastive Learning with Hard Negative Samples", arXiv:2010.04592; equation 4 with the
importance weights e^(beta s) of section 3.2, s = cosine / tau, through which the gradient passes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import debiased, over_anchors
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    tau_plus: Annotated[float, Field(ge=0, lt=1)]  # chance that a negative is of the anchor's class
    beta: NonNegativeFloat  # how much harder negatives count; 0: debiased
    projector: HeadParams


class HardNegative(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)
        knobs, tau = self.params, self.params.temperature
        loss = over_anchors(partial(debiased, tau=tau, tau_plus=knobs.tau_plus, beta=knobs.beta), a, b, tau)
        return Output(loss, embeddings=(a.detach(), b.detach()))
