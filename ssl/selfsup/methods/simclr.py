"""SimCLR: two views of an image agree more with one another than with any other image of the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709. Equation 1,
averaged over all positive pairs in both directions, is `nt_xent`:

    L = mean over the 2N views i of -log(exp(s_ip / tau) / sum over k != i of exp(s_ik / tau))

s is the cosine of two embeddings and p the other view of the same image.

Differences from the paper: none in the loss. The negatives come from the global batch of all processes.

Expect: 85 % linear accuracy on CIFAR-10 (ResNet-18, 200 epochs).
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import info_nce, large, over_anchors, unit
from selfsup.nn.distributed import gather
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

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


@full_precision
def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:  # [N D], [N D] -> []
    """Equation 1, mean over the 2N views i: p is i's partner, and k goes over all other views but p.

    L = -mean_i log( e^(z_i.z_p / tau) / (e^(z_i.z_p / tau) + sum_k e^(z_i.z_k / tau)) ), z at length 1
    """
    z, pairs = unit(torch.cat([a, b])), torch.eye(len(a), dtype=torch.bool, device=a.device).repeat(2, 2)
    negatives = (z / tau @ z.T).masked_fill(pairs, -torch.inf)  # [2N 2N]
    positive = (z * z.roll(len(a), 0)).sum(1) / tau  # [2N]
    return (torch.logaddexp(positive, negatives.logsumexp(1)) - positive).mean()


class SimCLR(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.tau = params.temperature

    def loss(self, z: Tensors, progress: Progress) -> Output:
        a, b = gather(z["a"]), gather(z["b"])  # [N D]
        loss = over_anchors(info_nce, a, b, self.tau) if large(a) else nt_xent(a, b, self.tau)
        return Output(loss, embeddings=(z["a"], z["b"]))
