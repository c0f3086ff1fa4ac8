"""What methods with small crops have in common: the crops, and what stands between them, a teacher or clusters."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from selfsup.epochs import Epochs
from selfsup.errors import UserError
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.nn.heads import CosineLayer, mlp, start_small
from selfsup.params import (
    CropsParams,
    HeadParams,
    MethodParams,
    PairOfProbabilities,
    Probability,
    TeacherHeadParams,
)
from selfsup.task import Batch, Facts, Group, Output, Progress, Task
from selfsup.views.draw import Draw
from selfsup.views.recipe import multi_crop


class MultiCrop(Task):
    """Two global views of every image and smaller local ones through one backbone; a method adds heads and the loss.

    `views` ends with the samples' places in the global batch, int64 [B]. Raises `UserError`
    when local crops are larger than global ones, or of a size that the backbone does not take.
    """

    def __init__(self, facts: Facts, crops: CropsParams, name: str):
        super().__init__()
        self.recipe, self.size, self.crops = facts.views, facts.image_size, crops
        self.backbone = facts.backbone()
        if crops.count == 0:
            return
        where = f"methods.{name}.crops"
        if crops.size > facts.image_size:
            raise UserError(f"{where}.size: {crops.size} px is more than data.image_size, {facts.image_size}; lower it")
        if crops.scale[1] > facts.views.crop_scale[1]:
            high = facts.views.crop_scale[1]
            raise UserError(f"{where}.scale: local crops up to {crops.scale[1]} of the image are larger than the "
                            f"global ones, {high} (views.crop_scale); lower it")  # fmt: skip
        try:
            self.backbone.admit(crops.size)
        except ValueError as error:
            raise UserError(f"{where}.size: {error}; use {facts.image_size}, or a count of 0") from None

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        crops = multi_crop(batch, draw, self.recipe, self.size, self.crops)
        return *crops, draw.place().to(crops[0].device, non_blocking=True)


def pooled(backbone: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """The features of each view [B width], by one call of the backbone for all views of a size."""
    groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
    return [x for group in groups for x in backbone(torch.cat(group))["pooled"].chunk(len(group))]


def cross_views(scores: Sequence[Tensor], targets: Sequence[Tensor], tau: float) -> Tensor:
    """Cross-entropy of each target with the predictions from every other view, mean over pairs of views and batch.

    Scores of V views, those with targets first, and probabilities: V x [B K], T x [B K] -> []
    """
    log_p = [(s / tau).log_softmax(1) for s in scores]
    terms = [-(q * log_p[v]).sum(1).mean() for i, q in enumerate(targets) for v in range(len(scores)) if v != i]
    return torch.stack(terms).mean()


class TeacherParams(MethodParams):
    """Knobs of a student that matches its teacher's outputs."""

    block: ClassVar[str]  # the method's name
    temperature: PositiveFloat  # tau_s, of the student
    teacher_temperature: PositiveFloat  # tau_t, after the warm-up
    teacher_temperature_start: PositiveFloat
    teacher_warmup: Probability  # share of the run in which the teacher's temperature goes from one to the other
    momentum: PairOfProbabilities  # lambda: m of the teacher, at the first step and after the last
    centre_momentum: Probability  # m
    outputs: Annotated[int, Field(ge=2)]  # K
    frozen_epochs: Epochs  # first epochs, in which the last layer stays
    decay_end: NonNegativeFloat  # what the optimiser's weight decay has risen to after the last step
    crops: CropsParams
    projector: TeacherHeadParams  # up to the bottleneck before the last layer
    export: Literal["teacher", "student"]  # whose backbone is exported and probed

    @model_validator(mode="after")
    def _the_teacher_is_sharper(self) -> "TeacherParams":
        for name in ("teacher_temperature", "teacher_temperature_start"):
            if getattr(self, name) >= self.temperature:
                raise ValueError(
                    f"methods.{self.block}.{name}: must be lower than the student's temperature, {self.temperature}, "
                    "or all outputs become equal; lower it"
                )
        return self


class Teacher(MultiCrop):
    """A student and its momentum teacher, each backbone and head, with the teacher's centre.

    Caron et al. 2021, arXiv:2104.14294: the teacher sees the two global views, the student all of them; weight decay
    rises along a cosine, the last layer is frozen at first, and the head starts with small weights. A method adds
    `embed` and `loss`, which carries `centre`.

    Differences from the authors' code, for DINO and iBOT alike: the teacher's temperature rises with every step and not
    with every epoch; class tokens, positions and mask tokens are not decayed, as in all methods here, where the code
    decays them; positions are fixed sines and cosines, and not learnt, as for all transformers here; gradients are not
    clipped and no paths are dropped, unless `pretrain.clip_grad_norm` is set, so that a comparison is of methods; the
    last layer's directions are drawn normal and are of length 1, where the code's start uniform and shorter.
    """

    centre: Tensor

    def __init__(self, params: TeacherParams, facts: Facts):
        super().__init__(facts, params.crops, params.block)
        self.params = params
        head = params.projector
        projector = mlp(self.backbone.width, head, norm=head.norm, activation=head.activation)
        start_small(projector)
        width = head.out if head.layers else self.backbone.width
        self.head = nn.Sequential(projector, CosineLayer(width, params.outputs))
        self.teacher = nn.ModuleList([target_of(self.backbone), target_of(self.head)])
        self.register_buffer("centre", torch.zeros(params.outputs))  # C

    def teacher_temperature(self, progress: Progress) -> float:
        start, end = self.params.teacher_temperature_start, self.params.teacher_temperature
        return start + (end - start) * progress.of(self.params.teacher_warmup)

    def before_step(self, progress: Progress) -> None:
        if progress.passed < self.params.frozen_epochs:
            self.head[1].weight.grad = None

    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        self.centre.lerp_(carry["centre"], 1 - self.params.centre_momentum)
        m = cosine_momentum(self.params.momentum, progress.fraction)
        for teacher, student in zip(self.teacher, (self.backbone, self.head), strict=True):
            ema_update(teacher, student, m)

    def groups(self) -> list[Group]:
        start, end = self.params.optimizer.weight_decay, self.params.decay_end
        weights, others = super().groups()
        weights.decay = lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress.fraction)) / 2
        return [weights, others]

    def encoder(self) -> nn.Module:
        return self.teacher[0] if self.params.export == "teacher" else self.backbone


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
