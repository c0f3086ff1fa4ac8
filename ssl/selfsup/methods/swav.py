"""SwAV: predict from one view the code of another; codes are balanced assignments of the batch to prototypes.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv:2006.09882.
Equation 2 is `cross_views`:

    L = mean over pairs of views t != s and images of -sum_k q_tk log softmax(z_s.C / tau)_k

z is a normalised projection and C the normalised prototypes. The codes q (section 3.1) come from the two global views
of the global batch and of a queue of earlier ones, so that all prototypes are used equally. Multi-crop is section 3.2.

Differences from the paper: the loss is the mean over pairs of views and not their sum, so that the learning rate does
not depend on the number of crops.

Expect: 89 % linear accuracy on CIFAR-10 (ResNet-18, 1000 epochs).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from selfsup.about import About, Paper
from selfsup.epochs import Epochs
from selfsup.errors import KnobError
from selfsup.families.multicrop import MultiCrop, by_sample, by_view, cross_views, pooled
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather, rank
from selfsup.nn.heads import mlp
from selfsup.nn.precision import full_precision
from selfsup.nn.queue import Queue
from selfsup.nn.sinkhorn import sinkhorn
from selfsup.params import CropsParams, HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="SwAV",
    family="clustering",
    kind="image",
    idea="predict from one view the balanced cluster assignment of another; small crops",
    paper=Paper(
        authors="Caron et al.",
        year=2020,
        title="Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        arxiv="2006.09882",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    eps: PositiveFloat  # epsilon, of the codes: lower, sharper
    prototypes: Annotated[int, Field(ge=2)]  # K
    frozen_epochs: Epochs  # first epochs, in which the prototypes stay
    queue: Annotated[int, Field(ge=0)]  # earlier features of each global view that take part in the codes; 0: none
    queue_epoch: Epochs  # the first ones, without the queue
    crops: CropsParams
    projector: HeadParams


@full_precision
def scored(z: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:  # [... D], [K D] -> [... D], [... K]
    """The embeddings at length 1, and their products with the prototypes."""
    z = unit(z)
    return z, z @ prototypes.T


@full_precision
def codes(z: Tensor, earlier: Tensor, prototypes: Tensor, eps: float) -> Tensor:  # [N D], [M D], [K D] -> [N+M K]
    """Section 3.1: Q = diag(u) exp(z C^T / eps) diag(v), rows sum to 1 and columns to about (N + M) / K."""
    return sinkhorn(torch.cat([z, earlier]) @ prototypes.T, eps)


class SwAV(MultiCrop):
    about = ABOUT
    queues: Any  # two `Queue`s

    def __init__(self, params: Params, facts: Facts):
        if params.prototypes > facts.batch_size + params.queue:
            raise KnobError(
                "prototypes",
                f"{params.prototypes} cannot be used equally by {facts.batch_size} images and "
                f"a queue of {params.queue} in use; lower it, or raise pretrain.batch_size or {{block}}.queue",
            )
        super().__init__(facts, params.crops)
        self.params = params
        self.projector = mlp(self.backbone.width, params.projector)
        width = params.projector.out if params.projector.layers else self.backbone.width
        self.prototypes = nn.Parameter(unit(torch.randn(params.prototypes, width)))  # C
        self.queues = nn.ModuleList(
            Queue(params.queue, width, facts.samples)
            for _ in range(2)  # one a global view
        )

    def embed(self, views: Sequence[Tensor], progress: Progress) -> Tensors:
        """Projections of the global views, z [B 2 D], and scores of all, [B V K]."""
        z, scores = scored(self.projector(torch.cat(pooled(self.backbone, views))), self.prototypes)
        return {"z": by_sample(z, len(views))[:, :2], "scores": by_sample(scores, len(views))}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        scores, both = by_view(z["scores"]), by_view(z["z"].detach())  # [V B K], [2 B D]
        queued = progress.passed >= self.params.queue_epoch
        earlier = [queue.keys if queued else queue.keys[:0] for queue in self.queues]
        prototypes, eps = self.prototypes.detach(), self.params.eps
        q = [codes(gather(x), old, prototypes, eps) for x, old in zip(both, earlier, strict=True)]
        own = slice(rank() * len(both[0]), (rank() + 1) * len(both[0]))
        loss = cross_views(scores.unbind(), [x[own] for x in q], self.params.temperature)
        used = torch.zeros_like(q[0][0]).index_fill(0, torch.cat(q).argmax(1), 1).mean()
        logs = {"below_uniform": 1 - loss / math.log(self.params.prototypes), "prototypes_used": used}
        return Output(loss, logs, rows={"z": z["z"]}, embeddings=both.unbind())

    def before_step(self, progress: Progress) -> None:
        if progress.passed < self.params.frozen_epochs:
            self.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, carry: Tensors, progress: Progress) -> None:
        self.prototypes.copy_(unit(self.prototypes))
        for queue, keys in zip(self.queues, carry["z"].unbind(1), strict=True):
            queue.push(keys)
