"""DINO: a student matches what its slowly moving teacher says of another view, centred and sharpened.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294.
Equation 3 is `distillation`, a mean over the pairs of different views; equation 4 is the centre. The teacher sees the
two global views, the student all of them. Weight decay rises along a cosine, the last layer is frozen at first.
Expect (CIFAR-10, ResNet-18, 1000 epochs, linear): 89 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from selfsup.nn.distributed import gather, mean_over_ranks
from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.nn.heads import CosineLayer, mlp
from selfsup.params import CropsParams, HeadParams, MethodParams, Probability
from selfsup.siamese import MultiCrop, pooled
from selfsup.task import Facts, Group, Output, Progress, decayed_groups


class Params(MethodParams):
    temperature: PositiveFloat  # tau_s, of the student
    teacher_temperature: PositiveFloat  # tau_t, after the warm-up
    teacher_temperature_start: PositiveFloat
    teacher_warmup: Probability  # share of the run in which the teacher's temperature goes from one to the other
    momentum: Probability  # lambda: where the teacher's momentum starts
    centre_momentum: Probability  # m
    outputs: Annotated[int, Field(ge=2)]  # K
    frozen_epochs: Annotated[int, Field(ge=0)]  # first epochs, in which the last layer stays
    decay_end: NonNegativeFloat  # what the optimiser's weight decay comes to at the end
    crops: CropsParams
    projector: HeadParams  # up to the bottleneck before the last layer

    @model_validator(mode="after")
    def _the_teacher_is_sharper(self) -> "Params":
        for name in ("teacher_temperature", "teacher_temperature_start"):
            if getattr(self, name) >= self.temperature:
                raise ValueError(
                    f"methods.dino.{name}: must be lower than the student's temperature, {self.temperature}, or all "
                    "outputs become equal; lower it"
                )
        return self


def distillation(student: Sequence[Tensor], targets: Sequence[Tensor], tau: float) -> Tensor:
    """Equation 3: cross-entropy of each target with the student's other views, mean over pairs and batch.

    Logits of V views, the global ones first, and probabilities of those: V x [B K], 2 x [B K] -> []
    """
    log_p = [(s / tau).log_softmax(1) for s in student]
    terms = [-(p * log_p[v]).sum(1).mean() for i, p in enumerate(targets) for v in range(len(student)) if v != i]
    return torch.stack(terms).mean()


class DINO(MultiCrop):
    centre: Tensor

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.crops, "dino")
        self.params = params
        projector = mlp(self.backbone.width, params.projector)
        width = params.projector.out if params.projector.layers else self.backbone.width
        self.head = nn.Sequential(projector, CosineLayer(width, params.outputs))
        self.teacher = nn.ModuleList([target_of(self.backbone), target_of(self.head)])
        self.register_buffer("centre", torch.zeros(params.outputs))  # C

    def embed(self, views: Sequence[Tensor], progress: Progress) -> Sequence[Tensor]:
        *crops, _ = views
        student = self.head(torch.cat(pooled(self.backbone, crops))).chunk(len(crops))
        with torch.no_grad():
            backbone, head = self.teacher
            teacher = head(torch.cat(pooled(backbone, crops[:2]))).chunk(2)
        return *teacher, *student

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        teacher, student = torch.stack(list(embeddings[:2])), embeddings[2:]
        with torch.autocast(teacher.device.type, enabled=False):
            targets = ((teacher - self.centre) / self.teacher_temperature(progress)).softmax(2)
            loss = distillation(student, list(targets), self.params.temperature)
        entropy = -(targets * targets.clamp(min=1e-30).log()).sum(2).mean()
        logs = {"below_uniform": 1 - loss.detach() / math.log(self.params.outputs), "teacher_entropy": entropy}
        seen = [gather(s.detach()) for s in student[:2]]
        return Output(loss, logs=logs, carry={"centre": mean_over_ranks(teacher.mean((0, 1)))}, embeddings=seen)

    def teacher_temperature(self, progress: Progress) -> float:
        start, end = self.params.teacher_temperature_start, self.params.teacher_temperature
        return start + (end - start) * min(1.0, progress.fraction / max(self.params.teacher_warmup, 1e-9))

    def before_step(self, progress: Progress) -> None:
        if progress.epoch < self.params.frozen_epochs:
            self.head[1].weight.grad = None

    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        self.centre.lerp_(carry["centre"], 1 - self.params.centre_momentum)
        m = cosine_momentum(self.params.momentum, progress.fraction)
        for teacher, student in zip(self.teacher, (self.backbone, self.head), strict=True):
            ema_update(teacher, student, m)

    def groups(self) -> list[Group]:
        start, end = self.params.optimizer.weight_decay, self.params.decay_end
        weights, others = decayed_groups(self.named_parameters())
        weights.decay = lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress.fraction)) / 2
        return [weights, others]
