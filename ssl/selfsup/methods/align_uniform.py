"""Alignment and uniformity: the two properties that InfoNCE optimises in the limit, optimised directly.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv:2005.10242, section 4.1:

    L = align_weight mean_i |x_i - y_i|^alpha + uniform_weight (U(x) + U(y)) / 2
    U(z) = log(mean over i != j of exp(-t |z_i - z_j|^2))

x and y are the normalised embeddings of both views.

Differences from the paper: none. Both terms are taken over the global batch of all processes.

Expect: 82.1 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.hypersphere import alignment, uniformity
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

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


@full_precision
def align_uniform(a: Tensor, b: Tensor, alpha: float, t: float, weights: tuple[float, float]) -> Tensor:
    """L = w_a E |x - y|^alpha + w_u (U(x) + U(y)) / 2, U(z) = log E_{i != j} exp(-t |z_i - z_j|^2). [N D], [N D] -> []

    x and y are `a` and `b` at length 1; `weights` are w_a and w_u.
    """
    x, y = unit(a), unit(b)
    align, uniform = alignment(x, y, alpha), (uniformity(x, t) + uniformity(y, t)) / 2
    return weights[0] * align + weights[1] * uniform


class AlignUniform(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, z: Tensors, progress: Progress) -> Output:
        a, b = gather(z["a"]), gather(z["b"])  # [N D]
        knobs = self.params
        weights = (knobs.align_weight, knobs.uniform_weight)
        return Output(align_uniform(a, b, knobs.alpha, knobs.t, weights), embeddings=(z["a"], z["b"]))
