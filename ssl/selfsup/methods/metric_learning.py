"""Metric learning: the views of an image lie closer together than those of different images, by a margin.

`pair`: Hadsell, Chopra & LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping",
doi:10.1109/CVPR.2006.100, equation 4, with its factors 1/2. `triplet`: Schroff et al. 2015, arXiv:1503.03832, of
squared distances. `lifted`: Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding",
arXiv:1511.06452, equation 4. Embeddings are normalised; all pairs and triplets of the global batch count, `pair` taking
the mean over positive and that over negative pairs. With `labels`, images of a class are positives: an upper bound.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.families.two_views import Siamese
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Batch, Facts, Output, Progress


class Params(MethodParams):
    form: Literal["pair", "triplet", "lifted"]
    margin: PositiveFloat  # distances of unit vectors are 0 to 2
    labels: bool  # false: only the views of an image are positives
    projector: HeadParams


def distances(z: Tensor) -> Tensor:  # [M D] -> [M M]
    """Squared Euclidean distances of the normalised rows."""
    with torch.autocast(z.device.type, enabled=False):
        z = unit(z)
        return (2 - 2 * z @ z.T).clamp(min=0)


def root(squared: Tensor) -> Tensor:
    """The distances themselves; the gradient at 0 is finite."""
    return squared.clamp(min=1e-12).sqrt()


def pair(squared: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:  # [M M] each, bool -> []
    near = squared[same] / 2
    far = (margin - root(squared[other])).clamp(min=0).square() / 2
    return near.mean() + far.sum() / max(1, far.numel())  # with labels, a batch may be of one class


def triplet(squared: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """Mean over all anchors, positives and negatives."""
    anchor, positive = same.nonzero(as_tuple=True)
    gap = squared[anchor, positive][:, None] - squared[anchor] + margin  # [P M]
    hinge = gap.clamp(min=0)[other[anchor]]
    return hinge.sum() / max(1, hinge.numel())  # with labels, a batch may be of one class


def lifted(squared: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """Every positive pair against the negatives of both its ends, in a soft maximum."""
    d = root(squared)
    reach = (margin - d).masked_fill(~other, -torch.inf).logsumexp(1)  # [M]
    i, j = same.nonzero(as_tuple=True)
    return (torch.logaddexp(reach[i], reach[j]) + d[i, j]).clamp(min=0).square().mean() / 2


FORMS = {"pair": pair, "triplet": triplet, "lifted": lifted}


class MetricLearning(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector)
        if params.labels and not facts.classes:
            raise UserError("methods.metric_learning.labels: the data has no labels; set false")
        self.params = params

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return *super().views(batch, draw), batch["id"], batch["label"]

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Sequence[Tensor]:
        return *super().embed(views[:2], progress), *views[2:]

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        a, b, ids, label = (gather(x) for x in embeddings)
        squared = distances(torch.cat([a, b]))
        group = torch.where(label >= 0, label, -1 - ids) if self.params.labels else ids
        alike = group.repeat(2)[:, None] == group.repeat(2)
        itself = torch.eye(len(alike), dtype=torch.bool, device=alike.device)
        loss = FORMS[self.params.form](squared, alike & ~itself, ~alike, self.params.margin)
        nearest = squared.detach()[: len(a), len(a) :].topk(min(5, len(a)), largest=False).indices  # other views
        hits = group[nearest] == group[:, None]
        recall = {f"recall_at_{k}": hits[:, :k].any(1).float().mean() for k in (1, 5)}
        return Output(loss, logs=recall, embeddings=(a.detach(), b.detach()))
