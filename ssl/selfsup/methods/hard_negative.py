"""Hard negatives: debiased contrastive learning that gives the negatives most similar to the anchor a larger weight.

Robinson et al. 2021, "Contrastive Learning with Hard Negative Samples", arXiv:2010.04592. Equation 4 with the
importance weights of section 3.2, through which the gradient passes:

    L = mean over the 2N views of -log(exp(s) / (exp(s) + n g)),  n = 2N - 2 negatives
    g = max((sum over negatives of w_k exp(s_k) - tau_plus exp(s)) / (1 - tau_plus), exp(-1 / tau))
    w_k = exp(beta s_k) / sum over negatives j of exp(beta s_j)

s is the cosine / tau with the positive and s_k that with a negative. With a beta of 0 the loss is that of `debiased`.

Differences from the paper: none in the loss. The negatives come from the global batch of all processes.

Expect: 82.0 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from functools import partial
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import corrected, over_anchors
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="Hard negatives",
    family="contrastive",
    kind="image",
    idea="debiased, with more weight on the most similar negatives",
    paper=Paper(
        authors="Robinson et al.",
        year=2021,
        title="Contrastive Learning with Hard Negative Samples",
        arxiv="2010.04592",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    tau_plus: Annotated[float, Field(ge=0, lt=1)]  # chance that a negative is of the anchor's class
    beta: NonNegativeFloat  # how much harder negatives count; 0: debiased
    projector: HeadParams


def hard(positive: Tensor, negatives: Tensor, tau: float, tau_plus: float, beta: float) -> Tensor:
    """Equation 4: L = mean( -s + log(e^s + n g) ), g = max( (E - tau_plus e^s) / (1 - tau_plus), e^(-1/tau) ),

    E = sum_k e^((1 + beta) s_k) / sum_k e^(beta s_k). s is the positive's and s_k the n negatives' cosine / tau.
    [M], [M n] -> []
    """
    return corrected(positive, negatives, beta * negatives, tau, tau_plus)


class HardNegative(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        self.params = params

    def loss(self, z: Tensors, progress: Progress) -> Output:
        a, b = gather(z["a"]), gather(z["b"])  # [N D]
        knobs, tau = self.params, self.params.temperature
        loss = over_anchors(partial(hard, tau=tau, tau_plus=knobs.tau_plus, beta=knobs.beta), a, b, tau)
        return Output(loss, embeddings=(z["a"], z["b"]))
