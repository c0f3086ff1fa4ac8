"""SimCLR: two views of an image agree more than with any other image in the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709.
Equation 1, averaged over all positive pairs in both directions, is `nt_xent`.
Expect (CIFAR-10, ResNet-18, 200 epochs, linear): 85 %.
"""

from collections.abc import Sequence

from pydantic import PositiveFloat
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import info_nce, over_anchors
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    projector: HeadParams  # g, which is thrown away after training


def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:  # [N D], [N D] -> []
    """Equation 1: every view's positive is its partner, all 2N - 2 other views of the batch are its negatives."""
    return over_anchors(info_nce, a, b, tau)


class SimCLR(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.tau = params.temperature

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)  # [N D] each
        return Output(nt_xent(a, b, self.tau), embeddings=(a.detach(), b.detach()))
