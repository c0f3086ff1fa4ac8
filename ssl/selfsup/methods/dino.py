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

import torch
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.distillation import Teacher, TeacherParams
from selfsup.families.multicrop import by_sample, by_view, cross_views, pooled
from selfsup.nn.distributed import mean_over_ranks
from selfsup.nn.precision import full_precision
from selfsup.task import Output, Progress, Tensors

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
    pass


@full_precision
def distillation(
    student: Tensor, teacher: Tensor, centre: Tensor, tau_s: float, tau_t: float
) -> tuple[Tensor, Tensor]:  # [V B K], [2 B K], [K] -> [], [2 B K]
    """Equation 3: L = -mean over views u != v and images of sum_k P_u[k] log softmax(s_v / tau_s)[k], and P.

    P_u = softmax((t_u - C) / tau_t), u being a global view of the teacher and v any view of the student.
    """
    targets = ((teacher - centre) / tau_t).softmax(2)
    return cross_views(student.unbind(), targets.unbind(), tau_s), targets


class DINO(Teacher):
    about = ABOUT

    def embed(self, views: Sequence[Tensor], progress: Progress) -> Tensors:
        """Logits of the teacher for the global views, [B 2 K], and of the student for all, [B V K]."""
        student = self.head(torch.cat(pooled(self.backbone, views)))
        with torch.no_grad():
            backbone, head = self.teacher
            teacher = head(torch.cat(pooled(backbone, views[:2])))
        return {"teacher": by_sample(teacher, 2), "student": by_sample(student, len(views))}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        student, teacher = by_view(z["student"]), by_view(z["teacher"])
        tau = self.params.temperature, self.teacher_temperature(progress)
        loss, targets = distillation(student, teacher, self.centre, *tau)
        entropy = -(targets * targets.clamp(min=1e-30).log()).sum(2).mean()
        logs = {"below_uniform": 1 - loss / math.log(self.params.outputs), "teacher_entropy": entropy}
        centre = mean_over_ranks(teacher.mean((0, 1)))
        return Output(loss, logs, carry={"centre": centre}, embeddings=student[:2].unbind())
