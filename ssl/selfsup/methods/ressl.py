"""ReSSL: two views of an image have the same similarities to other images; no image is pushed away as a negative.

Zheng et al. 2021, "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", arXiv:2107.09282. The loss of
section 3 is `relation`:

    L = mean over images of H(softmax(t.Q / tau_t), softmax(s.Q / tau_s)),  H(p, q) = -sum_k p_k log(q_k)

The teacher t, a moving average of the student, sees a weak view (crop and flip). The student s sees a strong view. Q is
a queue of the teacher's earlier embeddings. All vectors are normalised. The student is exported and probed, as in the
paper.

Differences from the paper: none in the loss. m rises along a cosine, where the paper's is constant, as for all momentum
encoders here.

Expect: 90 % linear accuracy on CIFAR-10 (ResNet-18, 200 epochs).
"""

from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.draw import Draw
from selfsup.families.momentum import Momentum
from selfsup.nn.contrastive import queue_similarities
from selfsup.nn.precision import full_precision
from selfsup.nn.queue import Queue
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Batch, Facts, Output, Progress, Tensors
from selfsup.views.image.recipe import crop_view, strong_view

ABOUT = About(
    title="ReSSL",
    family="no negatives",
    kind="image",
    idea="both views have the same similarities to a queue of other images",
    paper=Paper(
        authors="Zheng et al.",
        year=2021,
        title="ReSSL: Relational Self-Supervised Learning with Weak Augmentation",
        arxiv="2107.09282",
    ),
    couples_batch=False,
)


class Params(MethodParams):
    student_temperature: PositiveFloat  # tau_s
    teacher_temperature: PositiveFloat  # tau_t, lower: the target is sharper than what is to match it
    queue: PositiveInt  # K, the embeddings that all others are compared with
    momentum: PairOfProbabilities  # m of the teacher, at the first step and after the last
    projector: HeadParams

    @model_validator(mode="after")
    def _the_target_is_sharper(self) -> Self:
        teacher, student = self.teacher_temperature, self.student_temperature
        if teacher >= student:
            raise ValueError(f"teacher_temperature: {teacher} is not below student_temperature, {student}; lower it")
        return self


@full_precision
def relation(student: Tensor, teacher: Tensor) -> Tensor:  # [N K], [N K] -> []
    """L = -mean_i sum_k softmax(t_i)_k log softmax(s_i)_k, s and t being cosines with the queue / temperature."""
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()


class ReSSL(Momentum):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum)
        self.queue = Queue(params.queue, self.width, facts.samples)
        self.params = params

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        strong = strong_view(batch, draw.fork("strong"), self.recipe, self.size)
        weak = crop_view(batch, draw.fork("weak"), self.recipe, self.size)
        return strong, weak

    def loss(self, z: Tensors, progress: Progress) -> Output:
        q, k = z["q"], z["k"].detach()
        student = queue_similarities(q, self.queue.keys, self.params.student_temperature)
        teacher = queue_similarities(k, self.queue.keys, self.params.teacher_temperature)
        return Output(relation(student, teacher), rows={"k": k}, embeddings=(q, k))

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        super().after_step(carry, progress)
        self.queue.push(carry["k"])
