"""Self-distillation: a student matches the outputs of its momentum teacher."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from selfsup.epochs import Epochs
from selfsup.families.multicrop import MultiCrop
from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.nn.heads import CosineLayer, mlp, start_small
from selfsup.params import CropsParams, MethodParams, PairOfProbabilities, Probability, TeacherHeadParams
from selfsup.task import Facts, Group, Progress, Tensors


class TeacherParams(MethodParams):
    """Knobs of a student that matches its teacher's outputs."""

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
                    f"{name}: must be lower than the student's temperature, {self.temperature}, "
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
        super().__init__(facts, params.crops)
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

    def after_step(self, carry: Tensors, progress: Progress) -> None:
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
