"""DCL: SimCLR with the positive taken out of the denominator, which frees it from large batches.

Yeh et al. 2022, "Decoupled Contrastive Learning", arXiv:2110.06848.
Equation 5 is `decoupled`; the weights of equation 6 (DCLW) are `von_mises_fisher`.
Expect (CIFAR-10, ResNet-18, kNN): 83.7 to 84.4 % from batch 32 to 256, where SimCLR has 78.9 to 81.4 %.
"""

from collections.abc import Sequence

from pydantic import PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import decoupled, over_anchors, unit
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    weighted: bool  # DCLW: positives that are far apart count more
    sigma: PositiveFloat  # of the weights
    projector: HeadParams


def von_mises_fisher(cosine: Tensor, sigma: float) -> Tensor:  # [M] -> [M], mean 1
    """Equation 6: 2 - exp(cos / sigma) / E exp(cos / sigma), without gradient."""
    w = ((cosine.detach() - 1) / sigma).exp()
    return 2 - w / w.mean()


class DCL(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)
        tau = self.params.temperature
        cosine = (unit(a) * unit(b)).sum(1).repeat(2)  # either view's, of its positive
        own = [von_mises_fisher(cosine, self.params.sigma)] if self.params.weighted else []
        return Output(over_anchors(decoupled, a, b, tau, *own), embeddings=(a.detach(), b.detach()))
