"""SimCLR: two views of an image agree more than with any other image in the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709.
Equation 1, averaged over all positive pairs in both directions, is `nt_xent`.
Expect (CIFAR-10, ResNet-18, 200 epochs, linear): 85 %.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from selfsup.nn.distributed import gather
from selfsup.nn.heads import mlp
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Task
from selfsup.views.draw import Draw
from selfsup.views.recipe import two_views


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    projector: HeadParams  # g, which is thrown away after training


def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:  # [N D], [N D] -> []
    """Equation 1: every view's positive is its partner, all 2N - 2 other views of the batch are its negatives."""
    z = torch.cat([a, b])
    z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)  # [2N D]
    with torch.autocast(z.device.type, enabled=False):
        s = (z @ z.T / tau).fill_diagonal_(-torch.inf)  # [2N 2N], k != i
        return F.cross_entropy(s, torch.arange(len(z), device=z.device).roll(len(a)))


class SimCLR(Task):
    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        self.recipe, self.size = facts.views, facts.image_size
        self.backbone = facts.backbone()  # f
        self.projector = mlp(self.backbone.width, params.projector)  # g
        self.tau = params.temperature

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        return two_views(batch, draw, self.recipe, self.size)

    def embed(self, views: tuple[Tensor, Tensor], progress: Progress) -> Sequence[Tensor]:
        h = self.backbone(torch.cat(views))["pooled"]  # [2B width]
        return self.projector(h).chunk(2)

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b = (gather(z) for z in embeddings)  # [N D] each
        return Output(nt_xent(a, b, self.tau), embeddings=(a.detach(), b.detach()))
