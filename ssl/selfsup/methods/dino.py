"""DINO: a student matches its momentum teacher's output for another view, centred and sharpened.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294. Equation 3 is
`cross_views`, equation 4 the centre C:

    L = mean over pairs of different views and images of H(softmax((t - C) / tau_t), softmax(s / tau_s))
    C <- m C + (1 - m) mean over the batch of t after each step,  H(p, q) = -sum_k p_k log(q_k)

The teacher's outputs t are of the two global views, the student's s of all views. The teacher, its schedules and the
frozen last layer are those of `Teacher`. The head has GELU and no batch norm, and its weights start small, as in the
paper. The teacher is exported and probed, as in the paper (`export`).

Differences from the paper: none in the loss; those that DINO and iBOT share are listed at `Teacher`. The recipe of
params.yaml is for runs of a thousand steps on small images, in which the paper's head collapses at the paper's teacher
temperature. It has a sharper teacher, a centre that follows faster, no frozen epoch, no local crops, fewer outputs and
a narrower head. In such runs the student is better than the teacher, and batch norm in the head better than none
(benchmarks/README.md has the readings).

Expect: 89 % linear accuracy on CIFAR-10 (ResNet-18 with batch norm in the head, 1000 epochs).
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.distillation import Teacher, TeacherParams
from selfsup.families.multicrop import cross_views, pooled
from selfsup.nn.distributed import gather, mean_over_ranks
from selfsup.task import Output, Progress

ABOUT = About(
    title="DINO",
    family="no negatives",
    kind="image",
    idea="match a moving-average teacher's centred and sharpened output for another view",
    paper=Paper(
        authors="Caron et al.",
        year=2021,
        title="Emerging Properties in Self-Supervised Vision Transformers",
        arxiv="2104.14294",
    ),
    couples_batch=True,
)


class Params(TeacherParams):
    block: ClassVar[str] = "dino"


class DINO(Teacher):
    about = ABOUT

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
            loss = cross_views(student, list(targets), self.params.temperature)
        entropy = -(targets * targets.clamp(min=1e-30).log()).sum(2).mean()
        logs = {"below_uniform": 1 - loss.detach() / math.log(self.params.outputs), "teacher_entropy": entropy}
        seen = [gather(s.detach()) for s in student[:2]]
        return Output(loss, logs=logs, carry={"centre": mean_over_ranks(teacher.mean((0, 1)))}, embeddings=seen)
