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
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from selfsup.about import About, Paper
from selfsup.epochs import Epochs
from selfsup.errors import UserError
from selfsup.families.multicrop import MultiCrop, cross_views, pooled
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather, rank
from selfsup.nn.heads import mlp
from selfsup.nn.queue import Queue, in_order
from selfsup.nn.sinkhorn import sinkhorn
from selfsup.params import CropsParams, HeadParams, MethodParams
from selfsup.task import Facts, Output, Progress

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


class SwAV(MultiCrop):
    about = ABOUT
    queues: Any  # two `Queue`s

    def __init__(self, params: Params, facts: Facts):
        if params.prototypes > facts.batch_size + params.queue:
            raise UserError(
                f"methods.swav.prototypes: {params.prototypes} cannot be used equally by {facts.batch_size} images and "
                f"a queue of {params.queue} in use; lower it, or raise pretrain.batch_size or methods.swav.queue"
            )
        super().__init__(facts, params.crops, "swav")
        self.params = params
        self.projector = mlp(self.backbone.width, params.projector)
        width = params.projector.out if params.projector.layers else self.backbone.width
        self.prototypes = nn.Parameter(unit(torch.randn(params.prototypes, width)))  # C
        self.queues = nn.ModuleList(
            Queue(params.queue, width, facts.samples, "methods.swav.queue")
            for _ in range(2)  # one a global view
        )

    def embed(self, views: Sequence[Tensor], progress: Progress) -> Sequence[Tensor]:
        *crops, place = views
        z = self.projector(torch.cat(pooled(self.backbone, crops)))
        with torch.autocast(z.device.type, enabled=False):
            z = unit(z)
            scores = z @ self.prototypes.T
        return *z.chunk(len(crops))[:2], *scores.chunk(len(crops)), place

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b, *scores, place = embeddings
        z = [gather(x.detach()) for x in (a, b)]  # [N D] each
        queued = progress.passed >= self.params.queue_epoch
        with torch.autocast(a.device.type, enabled=False):
            everything = [torch.cat([x, queue.keys]) if queued else x for x, queue in zip(z, self.queues, strict=True)]
            codes = [sinkhorn(x @ self.prototypes.detach().T, self.params.eps) for x in everything]
            own = slice(rank() * len(a), (rank() + 1) * len(a))
            loss = cross_views(scores, [q[own] for q in codes], self.params.temperature)
        used = torch.zeros_like(codes[0][0]).index_fill(0, torch.cat(codes).argmax(1), 1).mean()
        logs = {"below_uniform": 1 - loss.detach() / math.log(self.params.prototypes), "prototypes_used": used}
        keys = in_order(torch.stack([a, b], dim=1), place)  # [N 2 D]
        return Output(loss, logs=logs, carry={"keys": keys}, embeddings=z)

    def before_step(self, progress: Progress) -> None:
        if progress.passed < self.params.frozen_epochs:
            self.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        self.prototypes.copy_(unit(self.prototypes))
        for queue, keys in zip(self.queues, carry["keys"].unbind(1), strict=True):
            queue.push(keys)
