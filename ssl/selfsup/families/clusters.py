"""Cluster prediction: once per epoch the stored embeddings are clustered; a view predicts its image's cluster."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfsup.draw import Draw
from selfsup.errors import KnobError
from selfsup.families.multicrop import MultiCrop, by_sample, pooled
from selfsup.nn.contrastive import unit
from selfsup.nn.heads import mlp
from selfsup.nn.precision import full_precision
from selfsup.params import CropsParams, HeadParams, MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Tensors


class ClustersParams(MethodParams):
    """Knobs of methods whose targets are clusters of the whole set."""

    temperature: PositiveFloat  # tau
    heads: PositiveInt  # sets of clusters, each with its own prototypes
    prototypes: Annotated[int, Field(ge=2)]  # K of each
    crops: CropsParams
    projector: HeadParams


@full_precision
def cosines(z: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:  # [B V D], [H K D] -> [B V D], [B V H K]
    """The embeddings at length 1, and their products with every head's prototypes."""
    z = unit(z)
    return z, torch.einsum("bvd,hkd->bvhk", z, prototypes)


@full_precision
def cluster_loss(scores: Tensor, labels: Tensor, tau: float) -> Tensor:  # [B V H K], int64 [B H] -> []
    """L = -mean over samples, views and heads of log softmax(scores / tau)[y], y being the image's cluster."""
    log_p = (scores / tau).log_softmax(3)
    return -log_p.gather(3, labels[:, None, :, None].expand(-1, log_p.shape[1], -1, 1)).mean()


class Clusters(MultiCrop):
    """Once per epoch the stored embeddings are clustered; an image's cluster is the target class of all its views.

    Caron et al. 2020, arXiv:2006.09882, appendix: the projections of both global views are stored in a bank during
    training. Before each epoch head h is clustered on the bank of view h % 2, so only the first epoch needs an extra
    pass over the data. Predictions: cosines with K prototypes / tau. A method adds `prototypes` [H K D] and `assign`.
    """

    prototypes: Tensor
    bank: Tensor
    labels: Tensor
    used: Tensor

    def __init__(self, params: ClustersParams, facts: Facts):
        if params.prototypes > facts.samples:
            raise KnobError(
                "prototypes",
                f"{params.prototypes} clusters are more than the {facts.samples} training images; lower it",
            )
        super().__init__(facts, params.crops)
        self.params = params
        self.projector = mlp(self.backbone.width, params.projector)
        self.width = params.projector.out if params.projector.layers else self.backbone.width
        self.register_buffer("bank", torch.zeros(2, facts.samples, self.width))
        self.register_buffer("labels", torch.zeros(params.heads, facts.samples, dtype=torch.int64))
        self.register_buffer("used", torch.zeros(()))  # share of the clusters that are not empty

    def assign(self, z: Tensor, head: int, epoch: int) -> Tensor:  # [N D] -> int64 [N]
        """The cluster of every image; `z` has unit rows."""
        raise NotImplementedError

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """The crops, and the images' numbers, int64 [B]."""
        crops = super().views(batch, draw)
        return *crops, batch["id"].to(crops[0].device, non_blocking=True)

    @torch.no_grad()
    def start_epoch(self, progress: Progress, sweep: Callable[[], Tensor]) -> Sequence[nn.Parameter]:
        if progress.epoch == 0:
            self.projector.eval()
            z = self.projector(sweep())
            self.bank.copy_(unit(z - z.mean(0)))  # an untrained network maps all images to nearly the same vector
            self.projector.train()
        for head in range(self.params.heads):
            self.labels[head] = self.assign(self.bank[head % 2], head, progress.epoch)
        count = self.params.prototypes
        self.used.copy_(torch.stack([own.bincount(minlength=count).count_nonzero() for own in self.labels]).sum())
        self.used.div_(count * self.params.heads)
        return ()

    def embed(self, views: Sequence[Tensor], progress: Progress) -> Tensors:
        """Projections of the global views, z [B 2 D]; scores of all, [B V H K]; and the images' numbers, id."""
        *crops, ids = views
        z = by_sample(self.projector(torch.cat(pooled(self.backbone, crops))), len(crops))  # [B V D]
        z, scores = cosines(z, self.prototypes)
        return {"z": z[:, :2], "scores": scores, "id": ids}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        loss = cluster_loss(z["scores"], self.labels[:, z["id"]].T, self.params.temperature)
        logs = {"below_uniform": 1 - loss / math.log(self.params.prototypes), "clusters_used": self.used.clone()}
        return Output(loss, logs, rows={"z": z["z"], "id": z["id"]}, embeddings=z["z"].unbind(1))

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        self.bank[:, carry["id"]] = carry["z"].transpose(0, 1).to(self.bank.dtype)
