"""Supervised: the baseline for every representation, a classifier trained with labels under the same budget.

Textbook knowledge, without a paper. The loss is the cross-entropy of a linear classifier on the pooled features:

    L = mean over labelled samples of -log softmax(W h)[label]

Differences: samples without a label (-1) do not count.

Expect: 88.2 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup import views
from selfsup.about import ANY, About
from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.nn.distributed import sum_over_ranks, world
from selfsup.nn.precision import full_precision
from selfsup.params import MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Task, Tensors

ABOUT = About(
    title="Supervised",
    family="with labels",
    kind=ANY,
    idea="the baseline: a classifier trained with labels",
    paper=None,
    couples_batch=True,
)


class Params(MethodParams):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


@full_precision
def labelled_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # [n K], [n] -> []
    """L = -mean over the labelled rows of all ranks of log softmax(logits)[y]; 0 when there are none."""
    total = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    count = sum_over_ranks((labels >= 0).sum().to(total.dtype))
    return total * world() / count.clamp(min=1)  # the mean over ranks of this is total / count


class Supervised(Task):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        if not facts.classes:
            raise UserError(
                f"supervised: the data has no labels; sort {facts.data.noun} into class folders, or choose a method"
            )
        self.view, self.recipe, self.data = views.find(facts.data.kind).view, facts.views, facts.data
        self.backbone = facts.backbone()
        self.classifier = nn.Linear(self.backbone.width, facts.classes)
        self.smoothing = params.label_smoothing

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        return self.view(batch, draw, self.recipe, self.data), batch["label"]

    def embed(self, views: tuple[Tensor, Tensor], progress: Progress) -> Tensors:
        x, labels = views
        h = self.backbone(x)["pooled"]
        return {"logits": self.classifier(h), "h": h, "label": labels}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        logits, labels = z["logits"], z["label"]
        right = (logits.argmax(1) == labels).sum() / (labels >= 0).sum().clamp(min=1)
        loss = labelled_cross_entropy(logits, labels, self.smoothing)
        return Output(loss, logs={"accuracy": right}, embeddings=[z["h"]])
