"""MoCo v3: the momentum encoder's keys of the same batch, a predictor, and a vision transformer that stays stable.

Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv:2104.02057.
L = ctr(q1, k2) + ctr(q2, k1), ctr being InfoNCE times 2 tau (algorithm 1, `contrast`). Both heads end in a batch norm
without scale and shift, as in the authors' code. The patch projection stays as it was drawn (section 4.2), without
which training jumps; the gradient norms of the first and the last trained weight are in the curves. The query encoder
is the one that is exported, as in the paper.
Differences: biases, norms and tokens are not decayed, as in all methods here, where the authors' AdamW decays
everything; the transformer's weights start as timm draws them and not from a uniform distribution. With a convolutional
backbone the authors' predictor has no norm on its output; here it has, so that the heads do not depend on the backbone.
Expect (CIFAR-10, ResNet-18, 1000 epochs, online probe): 93 %.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from selfsup.errors import UserError
from selfsup.families.momentum import Momentum
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.heads import predictor
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    momentum: PairOfProbabilities  # m of the key encoder, at the first step and after the last
    freeze_patch: bool  # the transformer's patch projection is not trained
    projector: HeadParams  # with a batch norm on its output
    predictor: HeadParams  # of the queries only, likewise


def contrast(q: Tensor, k: Tensor, tau: float) -> Tensor:  # [N D], [N D] -> []
    """Algorithm 1: InfoNCE of every query against the keys of the whole batch, times 2 tau."""
    with torch.autocast(q.device.type, enabled=False):
        s = unit(q) @ unit(k).T / tau
    return 2 * tau * F.cross_entropy(s, torch.arange(len(s), device=s.device))


class MoCoV3(Momentum):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum, norm_output=True)
        self.predictor = predictor(self.width, params.predictor, "moco_v3", norm_output=True)
        self.tau = params.temperature
        if params.freeze_patch:
            patches = getattr(self.backbone.net, "patch_embed", None)
            if patches is None:
                raise UserError("methods.moco_v3.freeze_patch: the network has no patches; set false, or backbone: vit")
            patches.requires_grad_(False)

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Sequence[Tensor]:
        a, b = views[:2]
        q = [self.predictor(self.projected(view)) for view in (a, b)]
        return *q, self.keys(a), self.keys(b)

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        qa, qb, ka, kb = (gather(z) for z in embeddings)
        loss = contrast(qa, kb.detach(), self.tau) + contrast(qb, ka.detach(), self.tau)
        return Output(loss, embeddings=(qa.detach(), qb.detach()))
