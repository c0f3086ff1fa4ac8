"""Cluster prediction: once per epoch the stored embeddings are clustered; a view predicts its image's cluster."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.families.multicrop import MultiCrop, pooled
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.heads import mlp
from selfsup.params import CropsParams, HeadParams, MethodParams
from selfsup.task import Batch, Facts, Output, Progress


class ClustersParams(MethodParams):
    """Knobs of methods whose targets are clusters of the whole set."""

    temperature: PositiveFloat  # tau
    heads: PositiveInt  # sets of clusters, each with its own prototypes
    prototypes: Annotated[int, Field(ge=2)]  # K of each
    crops: CropsParams
    projector: HeadParams


class Clusters(MultiCrop):
    """Once per epoch the stored embeddings are clustered; an image's cluster is the target class of all its views.

    Caron et al. 2020, arXiv:2006.09882, appendix: projections of the two global views are stored in a bank during
    training; before an epoch head h is clustered in that of view h modulo 2, which costs no pass over the data but the
    first. Predictions are cosines with K prototypes / tau. A method adds `prototypes` [H K D] and `assign`.
    """

    prototypes: Tensor
    bank: Tensor
    labels: Tensor
    used: Tensor

    def __init__(self, params: ClustersParams, facts: Facts, name: str):
        if params.prototypes > facts.samples:
            raise UserError(
                f"methods.{name}.prototypes: {params.prototypes} clusters are more than the {facts.samples} training "
                "images; lower it"
            )
        super().__init__(facts, params.crops, name)
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
        """The crops, and the images' numbers, int64 [B], in place of their places."""
        *crops, place = super().views(batch, draw)
        return *crops, batch["id"].to(place.device, non_blocking=True)

    @torch.no_grad()
    def start_epoch(self, progress: Progress, sweep: Callable[[], Tensor]) -> Sequence[nn.Parameter]:
        if progress.epoch == 0:
            self.projector.eval()
            z = self.projector(sweep())
            self.bank.copy_(unit(z - z.mean(0)))  # what an untrained network maps all images to tells nothing
            self.projector.train()
        for head in range(self.params.heads):
            self.labels[head] = self.assign(self.bank[head % 2], head, progress.epoch)
        count = self.params.prototypes
        self.used.copy_(torch.stack([own.bincount(minlength=count).count_nonzero() for own in self.labels]).sum())
        self.used.div_(count * self.params.heads)
        return ()

    def embed(self, views: Sequence[Tensor], progress: Progress) -> Sequence[Tensor]:
        """Projections of the global views [B 2 D], scores of all [B V H K], and the images' numbers."""
        *crops, ids = views
        z = self.projector(torch.cat(pooled(self.backbone, crops)))
        with torch.autocast(z.device.type, enabled=False):
            z = torch.stack(unit(z).chunk(len(crops)), dim=1)  # [B V D]
            return z[:, :2], torch.einsum("bvd,hkd->bvhk", z, self.prototypes), ids

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        z, scores, ids = embeddings
        with torch.autocast(scores.device.type, enabled=False):
            log_p = (scores / self.params.temperature).log_softmax(3)  # [B V H K]
        labels = self.labels[:, ids].T[:, None, :, None].expand(-1, log_p.shape[1], -1, 1)
        loss = -log_p.gather(3, labels).mean()
        logs = {"below_uniform": 1 - loss.detach() / math.log(log_p.shape[3]), "clusters_used": self.used.clone()}
        z = gather(z.detach())
        return Output(loss, logs=logs, carry={"z": z, "ids": gather(ids)}, embeddings=z.unbind(1))

    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        self.bank[:, carry["ids"]] = carry["z"].transpose(0, 1).to(self.bank.dtype)
