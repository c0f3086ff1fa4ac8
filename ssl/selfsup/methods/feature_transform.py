"""Feature transformation: MoCo with positives pushed apart and negatives mixed, both in the space of embeddings.

Zhu et al. 2021, "Improving Contrastive Learning by Visualizing Feature Transformation", arXiv:2108.02982. `extrapolate`
moves query and key away from each other, and `interpolate` mixes keys inside the queue:

    q^ = l q + (1 - l) k,  k^ = l k + (1 - l) q,    l ~ Beta(positive, positive) + 1
    n^ = l' n + (1 - l') n' for a random other n',  l' ~ Beta(negative, negative)
    L = mean over queries of -log(exp(q^.k^ / tau) / (exp(q^.k^ / tau) + sum over n^ of exp(q.n^ / tau)))

So a positive score s falls to 2 l (1 - l) + (l^2 + (1 - l)^2) s. Features are normalised before the transformation, and
not again afterwards. The transformed positive score is in the curves: at first it is lower than MoCo's.

Differences from the paper: those of `moco`: batch norm is not shuffled among processes, and m rises along a cosine.

Expect: 81.2 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.draw import Draw
from selfsup.families.momentum import Momentum
from selfsup.nn.contrastive import info_nce, queue_similarities, unit
from selfsup.nn.precision import full_precision
from selfsup.nn.queue import Queue
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Batch, Facts, Output, Progress, Tensors

ABOUT = About(
    title="Feature transformation",
    family="contrastive",
    kind="image",
    idea="MoCo with positives pushed apart and negatives mixed, as features",
    paper=Paper(
        authors="Zhu et al.",
        year=2021,
        title="Improving Contrastive Learning by Visualizing Feature Transformation",
        arxiv="2108.02982",
    ),
    couples_batch=False,
)

Shape = Annotated[float, Field(ge=1)]


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    queue: PositiveInt  # K
    momentum: PairOfProbabilities  # m of the key encoder, at the first step and after the last
    positive: Shape | None  # alpha of Beta(alpha, alpha) + 1, how far positives are pushed apart; null: not
    negative: Shape | None  # alpha of Beta(alpha, alpha), by which negatives are mixed; null: not
    projector: HeadParams


def beta(u: Tensor, a: float) -> Tensor:
    """Numbers uniform in 0..1 -> numbers of Beta(a, a), a >= 1, by the inverse of its distribution, in float64."""
    grid = torch.linspace(0, 1, 2049, dtype=torch.float64, device=u.device)
    cdf = F.pad(torch.cumulative_trapezoid((grid * (1 - grid)) ** (a - 1), grid), (1, 0))
    cdf = cdf / cdf[-1]
    u = u.double()
    above = torch.searchsorted(cdf, u).clamp(1, len(grid) - 1)
    low, high = cdf[above - 1], cdf[above]
    return grid[above - 1] + (u - low) / (high - low) * grid[1]


def extrapolate(q: Tensor, k: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """lam z + (1 - lam) z' of either, lam in 1..2. [N D], [N D], [N 1]"""
    return lam * q + (1 - lam) * k, lam * k + (1 - lam) * q


def interpolate(queue: Tensor, other: Tensor, lam: Tensor) -> Tensor:
    """Mix each key with the key in row `other`. [K D], int64 [K], [K 1] -> [K D]"""
    return lam * queue + (1 - lam) * queue[other]


@full_precision
def contrast(q: Tensor, k: Tensor, lam: Tensor, negatives: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """L = -mean_i log( e^(q'_i.k'_i / tau) / (e^(q'_i.k'_i / tau) + sum_j e^(q_i.m_j / tau)) ), and mean_i q'_i.k'_i.

    q and k are of length 1, q' and k' extrapolated, m the mixed keys. [N D], [N D], [N 1], [K D] -> [], []
    """
    q_hat, k_hat = extrapolate(unit(q), unit(k), lam)
    score = (q_hat * k_hat).sum(1)
    return info_nce(score / tau, queue_similarities(q, negatives, tau)), score.mean()


class FeatureTransform(Momentum):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum)
        self.queue = Queue(params.queue, self.width, facts.samples)
        self.params = params
        self.seed = int(torch.randint(2**31, ()))  # of the mixing, a function of the run's seed

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        views = super().views(batch, draw)
        alpha = self.params.positive
        lam = torch.ones(len(draw.key), 1) if alpha is None else 1 + beta(draw.uniform("positive", 1), alpha)
        return *views, lam.to(views[0])

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        query, key, lam = views
        return {**super().embed((query, key), progress), "lam": lam}

    def negatives(self, step: int) -> Tensor:
        """The queue, mixed anew each step. [K D]"""
        keys, alpha = self.queue.keys, self.params.negative
        if alpha is None:
            return keys
        draw = Draw(self.seed, step, torch.arange(len(keys), device=keys.device))
        return interpolate(keys, draw.place().argsort(), beta(draw.uniform("negative", 1), alpha).to(keys))

    def loss(self, z: Tensors, progress: Progress) -> Output:
        q, k = z["q"], z["k"].detach()
        mixed = self.negatives(progress.step)
        loss, score = contrast(q, k, z["lam"].detach(), mixed, self.params.temperature)
        return Output(loss, {"positive_score": score}, rows={"k": k}, embeddings=(q, k))

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        super().after_step(carry, progress)
        self.queue.push(carry["k"])
