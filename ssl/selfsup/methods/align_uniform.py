"""Alignment and uniformity: the two properties that InfoNCE optimises in the limit, optimised directly.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv:2005.10242, section 4.1:

    L = align_weight mean_i |x_i - y_i|^alpha + uniform_weight (U(x) + U(y)) / 2
    U(z) = log(mean over i != j of exp(-t |z_i - z_j|^2))

x and y are the normalised embeddings of both views.

Differences from the paper: none. Both terms are taken over the global batch of all processes.

Expect: 82.1 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.hypersphere import alignment, uniformity
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress

ABOUT = About(
    title="Alignment and uniformity",
    family="contrastive",
    kind="image",
    idea="pull positives together, spread all images over the sphere",
    paper=Paper(
        authors="Wang & Isola",
        year=2020,
        title="Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
        arxiv="2005.10242",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    alpha: PositiveFloat  # power of the distance of positives
    t: PositiveFloat  # sharpness of the Gaussian potential
    align_weight: NonNegativeFloat
    uniform_weight: NonNegativeFloat
    projector: HeadParams


class AlignUniform(Siamese):
    about = ABOUT

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
