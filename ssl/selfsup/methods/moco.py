"""MoCo: two views of an image agree more with one another than with a long queue of the keys of earlier batches.

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv:1911.05722. Version 1 is
`projector.layers: 1` with `temperature: 0.07`. Version 2 is two layers with 0.2: Chen et al. 2020, "Improved Baselines
with Momentum Contrastive Learning", arXiv:2003.04297. Equation 1 is `info_nce`, equation 2 the key encoder's average:

    L = mean over queries q of -log(exp(q.k / tau) / (exp(q.k / tau) + sum over the queue's keys j of exp(q.j / tau)))
    theta_k <- m theta_k + (1 - m) theta_q after each step

Queries and keys are normalised. The query encoder is exported and probed, as in the paper.

Differences from the paper: batch norm is not shuffled among processes (section 3.3). Queries and keys have their own
statistics, each over the global batch, so that results do not depend on the number of processes. A query can still
detect from these statistics that its key is from the same batch, which is what the shuffling prevents; the effect
shrinks with the batch size. Heads of two layers have a batch norm. m rises along a cosine, where the paper's is 0.999
throughout, because short runs need keys that follow faster at first.

Expect: 86 % linear accuracy on CIFAR-10 (ResNet-18, 200 epochs).
"""

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.momentum import Momentum
from selfsup.nn.contrastive import info_nce, unit
from selfsup.nn.precision import full_precision
from selfsup.nn.queue import Queue
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="MoCo",
    family="contrastive",
    kind="image",
    idea="negatives from a queue of earlier batches' keys, by a momentum encoder; v1 and v2",
    paper=Paper(
        authors="He et al.",
        year=2020,
        title="Momentum Contrast for Unsupervised Visual Representation Learning",
        arxiv="1911.05722",
    ),
    couples_batch=False,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    queue: PositiveInt  # K, the keys of earlier batches that are negatives
    momentum: PairOfProbabilities  # m of the key encoder, at the first step and after the last
    projector: HeadParams


@full_precision
def contrast(q: Tensor, k: Tensor, queue: Tensor, tau: float) -> Tensor:  # [N D], [N D], [K D] of length 1 -> []
    """Equation 1, q and k at length 1, m the queue:

    L = -mean_i log( e^(q_i.k_i / tau) / (e^(q_i.k_i / tau) + sum_j e^(q_i.m_j / tau)) )
    """
    positive = (unit(q) * unit(k)).sum(1) / tau  # [N]
    negatives = unit(q) @ queue.T / tau  # [N K]
    return info_nce(positive, negatives)


class MoCo(Momentum):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum)
        self.queue = Queue(params.queue, self.width, facts.samples)
        self.tau = params.temperature

    def loss(self, z: Tensors, progress: Progress) -> Output:
        q, k = z["q"], z["k"].detach()
        return Output(contrast(q, k, self.queue.keys, self.tau), rows={"k": k}, embeddings=(q, k))

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        super().after_step(carry, progress)
        self.queue.push(carry["k"])
