"""SimCLR: two views of an image agree more with one another than with any other image of the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709. Equation 1,
averaged over all positive pairs in both directions, is `nt_xent`:

    L = mean over the 2N views i of -log(exp(s_ip / tau) / sum over k != i of exp(s_ik / tau))

s is the cosine of two embeddings and p the other view of the same image.

Differences from the paper: none in the loss. The negatives come from the global batch of all processes.

Expect: 85 % linear accuracy on CIFAR-10 (ResNet-18, 200 epochs).
"""

from collections.abc import Sequence

from pydantic import PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import info_nce, over_anchors
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress

ABOUT = About(
    title="SimCLR",
    family="contrastive",
    kind="image",
    idea="two views of an image agree more than with any other image",
    paper=Paper(
        authors="Chen et al.",
        year=2020,
        title="A Simple Framework for Contrastive Learning of Visual Representations",
        arxiv="2002.05709",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    projector: HeadParams  # g, which is thrown away after training


def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:  # [N D], [N D] -> []
    """Equation 1: every view's positive is its partner, all 2N - 2 other views of the batch are its negatives."""
    return over_anchors(info_nce, a, b, tau)


class SimCLR(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.tau = params.temperature

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)  # [N D] each
        return Output(nt_xent(a, b, self.tau), embeddings=(a.detach(), b.detach()))
