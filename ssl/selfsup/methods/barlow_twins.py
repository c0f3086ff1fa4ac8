"""Barlow Twins: each dimension of the embedding agrees between views and is independent of the other dimensions.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv:2103.03230. Equation 1 is
`barlow`, and equation 2 the `cross_correlation` of both views' embeddings over the global batch:

    L = scale (sum_i (1 - C_ii)^2 + lambda sum over i != j of C_ij^2)
    C_ij = mean over images of a_i b_j,  a and b standardised per dimension over the batch

The variance is biased with an eps of 1e-5, as in batch norm. Each view has its own forward pass, as in the paper, so
that batch norm's statistics are each view's own.

Differences from the paper: the whole loss is multiplied by `scale`, so that learning rates are similar to those of
other methods. Biases and norms have the learning rate of the weights, where the paper gives them a lower one, so that a
block has one rate. The projector is smaller, for small images; its last layer has a bias, which the cross-correlation
removes.

Expect: 92 % linear accuracy on CIFAR-10 (ResNet-18, 1000 epochs).
"""

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.distributed import gather
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="Barlow Twins",
    family="no negatives",
    kind="image",
    idea="the views' dimensions agree with themselves, not with each other",
    paper=Paper(
        authors="Zbontar et al.",
        year=2021,
        title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        arxiv="2103.03230",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    redundancy: NonNegativeFloat  # lambda
    scale: PositiveFloat  # of the whole loss
    projector: HeadParams


@full_precision
def cross_correlation(a: Tensor, b: Tensor) -> Tensor:  # [N D], [N D] -> [D D]
    """Equation 2: C_ij = sum_n x_ni y_nj / N, x and y being `a` and `b` standardised over the batch."""
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b))
    return a.T @ b / len(a)


@full_precision
def barlow(c: Tensor, redundancy: float) -> Tensor:  # [D D] -> []
    """Equation 1: L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2."""
    on = c.diagonal()
    return (1 - on).square().sum() + redundancy * (c.square().sum() - on.square().sum())


class BarlowTwins(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        a, b = views
        return {"a": self.projected(a), "b": self.projected(b)}  # batch norm's statistics are each view's own

    def loss(self, z: Tensors, progress: Progress) -> Output:
        a, b = gather(z["a"]), gather(z["b"])  # [N D]
        loss = self.params.scale * barlow(cross_correlation(a, b), self.params.redundancy)
        return Output(loss, embeddings=(z["a"], z["b"]))
