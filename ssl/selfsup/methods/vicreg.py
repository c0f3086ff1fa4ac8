"""VICReg: invariance between views, variance kept in every dimension, covariance between dimensions removed.

Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
arXiv:2105.04906, equations 1 to 6:

    L = lambda mean((a - b)^2) + mu (h(a) + h(b)) / 2 + nu (c(a) + c(b))
    h(z) = mean over dimensions d of max(0, 1 - sqrt(var(z_d) + 1e-4))
    c(z) = sum over i != j of cov(z)_ij^2 / D

a and b [N D] are both views' embeddings. Statistics are of the global batch. Each view has its own forward pass, as in
the paper, so that batch norm's statistics are each view's own.

Differences from the paper: its equations, listing and code differ in their reductions, and the weights 25, 25, 1 fit
the code's, which are used here: invariance is a mean over batch and dimensions, variance half the sum of both views'
hinges, covariance the sum of both views' off-diagonal squares / D. The projector is smaller, for small images; its last
layer has a bias, which all three terms remove.

Expect: 92 % linear accuracy on CIFAR-10 (ResNet-18, 1000 epochs).
"""

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.distributed import gather
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="VICReg",
    family="no negatives",
    kind="image",
    idea="invariance, variance, covariance",
    paper=Paper(
        authors="Bardes et al.",
        year=2022,
        title="VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
        arxiv="2105.04906",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    invariance: NonNegativeFloat  # lambda
    variance: NonNegativeFloat  # mu; 0: the output collapses
    covariance: NonNegativeFloat  # nu
    projector: HeadParams


@full_precision
def hinge(z: Tensor) -> Tensor:  # [N D] -> []
    """Equation 1: v(z) = mean_d max(0, 1 - sqrt(var(z_d) + 1e-4))."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


@full_precision
def off_diagonal(z: Tensor) -> Tensor:  # [N D] -> []
    """Equations 3 and 4: c(z) = sum_{i != j} cov(z_i, z_j)^2 / D."""
    centred = z - z.mean(0)
    c = centred.T @ centred / (len(z) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]


@full_precision
def vicreg(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [N D], [N D] -> [], [], []
    """The terms of equation 6: L = lambda mean (a - b)^2 + mu (v(a) + v(b)) / 2 + nu (c(a) + c(b))."""
    return F.mse_loss(a, b), (hinge(a) + hinge(b)) / 2, off_diagonal(a) + off_diagonal(b)


class VICReg(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        a, b = views
        return {"a": self.projected(a), "b": self.projected(b)}  # batch norm's statistics are each view's own

    def loss(self, z: Tensors, progress: Progress) -> Output:
        a, b = gather(z["a"]), gather(z["b"])  # [N D]
        invariance, variance, covariance = vicreg(a, b)
        k = self.params
        loss = k.invariance * invariance + k.variance * variance + k.covariance * covariance
        logs = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return Output(loss, logs, embeddings=(z["a"], z["b"]))
