"""MoCo v3: InfoNCE with a momentum encoder's keys of the same batch, a predictor, and a vision transformer kept stable.

Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv:2104.02057. Algorithm 1 is
`contrast`:

    L = ctr(q1, k2) + ctr(q2, k1)
    ctr(q, k) = 2 tau mean_i -log(exp(q_i.k_i / tau) / sum over j of exp(q_i.k_j / tau))

Queries and keys are normalised; j runs over the global batch. Both heads end in a batch norm without scale and shift,
as in the authors' code. The patch projection keeps its initial weights (section 4.2), without which training becomes
unstable; the curves show the gradient norms of the first and the last trained weight. The query encoder is exported, as
in the paper.

Differences from the paper: biases, norms and tokens are not decayed, as in all methods here; the authors' AdamW decays
everything. The transformer's weights start as timm draws them and not from a uniform distribution. With a convolutional
backbone the authors' predictor has no norm on its output; here it has one, so that the heads do not depend on the
backbone.

Expect: 93 % online-probe accuracy on CIFAR-10 (ResNet-18, 1000 epochs).
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.errors import KnobError
from selfsup.families.momentum import Momentum
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.heads import predictor
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="MoCo v3",
    family="contrastive",
    kind="image",
    idea="momentum keys of the same batch and a predictor, for vision transformers",
    paper=Paper(
        authors="Chen et al.",
        year=2021,
        title="An Empirical Study of Training Self-Supervised Vision Transformers",
        arxiv="2104.02057",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    momentum: PairOfProbabilities  # m of the key encoder, at the first step and after the last
    freeze_patch: bool  # the transformer's patch projection is not trained
    projector: HeadParams  # with a batch norm on its output
    predictor: HeadParams  # of the queries only, likewise


@full_precision
def contrast(q: Tensor, k: Tensor, tau: float) -> Tensor:  # [N D], [N D] -> []
    """Algorithm 1: L = -2 tau mean_i log( e^(q_i.k_i / tau) / sum_j e^(q_i.k_j / tau) ), q and k at length 1."""
    s = unit(q) @ unit(k).T / tau
    return 2 * tau * F.cross_entropy(s, torch.arange(len(s), device=s.device))


class MoCoV3(Momentum):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum, norm_output=True)
        self.predictor = predictor(self.width, params.predictor, norm_output=True)
        self.tau = params.temperature
        if params.freeze_patch:
            patches = getattr(self.backbone.net, "patch_embed", None)
            if patches is None:
                raise KnobError("freeze_patch", "the network has no patches; set false, or backbone: vit")
            patches.requires_grad_(False)

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        a, b = views
        q = {"query_a": self.predictor(self.projected(a)), "query_b": self.predictor(self.projected(b))}
        return q | {"key_a": self.keys(a), "key_b": self.keys(b)}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        q = [gather(z[name]) for name in ("query_a", "query_b")]  # [N D]
        k = [gather(z[name]).detach() for name in ("key_a", "key_b")]
        loss = contrast(q[0], k[1], self.tau) + contrast(q[1], k[0], self.tau)
        return Output(loss, embeddings=(z["query_a"], z["query_b"]))
