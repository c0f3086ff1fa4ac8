"""Debiased contrastive learning: some negatives are of the anchor's own class, so their expected share is subtracted.

Chuang et al. 2020, "Debiased Contrastive Learning", arXiv:2007.00224. Equation 8 with one positive (M = 1):

    L = mean over the 2N views of -log(exp(s / t) / (exp(s / t) + n g)),  n = 2N - 2 negatives
    g = max((mean over negatives of exp(s_k / t) - tau_plus exp(s / t)) / (1 - tau_plus), exp(-1 / t))

s is the cosine with the positive and s_k that with a negative. With a tau_plus of 0 the loss is SimCLR's.

Differences from the paper: none in the loss. The negatives come from the global batch of all processes.

Expect: 80.4 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from functools import partial
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import corrected, over_anchors
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="Debiased contrastive learning",
    family="contrastive",
    kind="image",
    idea="SimCLR less the share of negatives that are of the same class",
    paper=Paper(authors="Chuang et al.", year=2020, title="Debiased Contrastive Learning", arxiv="2007.00224"),
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat  # t
    tau_plus: Annotated[float, Field(ge=0, lt=1)]  # chance that a negative is of the anchor's class; 0: SimCLR
    projector: HeadParams


def debiased(positive: Tensor, negatives: Tensor, tau: float, tau_plus: float) -> Tensor:  # [M], [M n] -> []
    """Equation 8: L = mean( -s + log(e^s + n g) ),

    g = max( (mean_k e^s_k - tau_plus e^s) / (1 - tau_plus), e^(-1/tau) ). s is the positive's and s_k the n
    negatives' cosine / tau.
    """
    return corrected(positive, negatives, torch.zeros_like(negatives), tau, tau_plus)


class Debiased(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, z: Tensors, progress: Progress) -> Output:
        a, b = gather(z["a"]), gather(z["b"])  # [N D]
        t = self.params.temperature
        loss = over_anchors(partial(debiased, tau=t, tau_plus=self.params.tau_plus), a, b, t)
        return Output(loss, embeddings=(z["a"], z["b"]))
