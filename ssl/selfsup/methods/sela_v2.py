"""SeLa-v2: predict each view's cluster, clusters being a balanced assignment of the whole set to learnt prototypes.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv:2006.09882,
appendix: SeLa (Asano et al. 2020, arXiv:1911.05371) with SwAV's views, projector and temperature. Labels are hard, each
image's largest share of the transport plan.
"""

from collections.abc import Mapping

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from selfsup.families.clusters import Clusters, ClustersParams
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import of_first_rank
from selfsup.nn.sinkhorn import sinkhorn
from selfsup.task import Facts, Progress

ROUNDS = 20  # of Sinkhorn-Knopp, once an epoch


class Params(ClustersParams):
    eps: PositiveFloat  # epsilon, of the transport plan: lower, sharper


class SeLaV2(Clusters):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(params, facts, "sela_v2")
        self.prototypes = nn.Parameter(unit(torch.randn(params.heads, params.prototypes, self.width)))
        self.eps = params.eps

    def assign(self, z: Tensor, head: int, epoch: int) -> Tensor:
        return of_first_rank(sinkhorn(z @ self.prototypes[head].T, self.eps, ROUNDS).argmax(1))

    @torch.no_grad()
    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        super().after_step(carry, progress)
        self.prototypes.copy_(unit(self.prototypes))
